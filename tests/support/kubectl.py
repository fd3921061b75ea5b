"""A kubectl that answers from recorded JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FAKE = f"""#!{sys.executable}
import json, os, sys
answers = json.load(open(os.path.join(os.path.dirname(__file__), "answers.json")))
words = " ".join(sys.argv[1:])
with open(os.path.join(os.path.dirname(__file__), "calls"), "a") as calls:
    calls.write(words + "\\n")
for start, (code, out, err) in answers:
    if words.startswith(start):
        if "-f -" in words:
            with open(os.path.join(os.path.dirname(__file__), "stdin"), "a") as stdin:
                stdin.write(sys.stdin.read() + "=== next\\n")
        sys.stdout.write(out)
        sys.stderr.write(err)
        sys.exit(code)
sys.exit("Error from server: nothing recorded for " + words)
"""

# Recorded answers: (exit code, stdout, stderr).
CRDS = (0, "pods\npytorchjobs.kubeflow.org\njobsets.jobset.x-k8s.io\n", "")
FORBIDDEN = (1, "", 'User "u" cannot list resource "nodes" in API group "" at the cluster scope')
UNKNOWN = (1, "", 'error: the server doesn\'t have a resource type "localqueues"')


class Recorded:
    """A kubectl for PATH that gives the first recorded answer whose start matches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "kubectl").write_text(FAKE)
        (folder / "kubectl").chmod(0o755)

    def answers(self, *answers: tuple[str, Any]) -> None:
        """Record (start of the words, answer), after what every job needs."""
        there = (0, "persistentvolumeclaim/shared\n", "")
        answers = (("get persistentvolumeclaims shared", there), *answers)
        answers = (*answers, ("delete configmap", ""), ("delete jobs.batch", ""))
        rows = [
            (start, a if isinstance(a, tuple) else (0, json.dumps(a) if a != "" else "", "")) for start, a in answers
        ]
        (self.folder / "answers.json").write_text(json.dumps(rows))

    @property
    def calls(self) -> list[str]:
        """The words of every call."""
        return (self.folder / "calls").read_text().splitlines()


def items(*things: Any) -> dict[str, Any]:
    """Return a list of objects, as kubectl prints it."""
    return {"kind": "List", "items": list(things)}


def node(product: str | None = "NVIDIA-A100-SXM4-80GB", gpus: str = "8", *taints: str, **more: str) -> dict[str, Any]:
    """Return a node with GPUs, taints, and more allocatable resources."""
    labels = {"nvidia.com/gpu.product": product} if product else {}
    return {
        "metadata": {"name": "n", "labels": labels},
        "spec": {"taints": [{"key": taint, "effect": "NoSchedule"} for taint in taints]},
        "status": {"allocatable": {"nvidia.com/gpu": gpus, **more}},
    }
