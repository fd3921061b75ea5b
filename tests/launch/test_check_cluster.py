"""scripts/check_cluster.sh, against a kubectl that answers as a server would and a real helm's stand-in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import EXAMPLES

CHECKOUT = Path(__file__).resolve().parents[2]
KUBECTL = """#!/bin/bash
echo "$*" >> {folder}/calls
case "$*" in
"get namespace"*) exit {there} ;;
api-resources*) printf 'pods\\n{kinds}' ;;
*--dry-run=server*) grep -q 'kind: ' "${{@: -1}}" || exit 1; {answer} ;;
esac
"""


def check(
    folder: Path, *, there: int = 1, kinds: str = "jobsets.jobset.x-k8s.io\\n", answer: str = "true"
) -> tuple[int, str]:
    """Return exit code and output."""
    for name, body in {
        "kubectl": KUBECTL.format(folder=folder, there=there, kinds=kinds, answer=answer),
        "qwen-job": f'#!/bin/bash\nexec {sys.executable} -m qwen_job "$@"\n',
        "helm": "#!/bin/bash\necho $* >> $(dirname $0)/calls\n",
    }.items():
        (folder / name).write_text(body)
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    words = [CHECKOUT / "scripts" / "check_cluster.sh"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_every_example_is_asked_for_and_nothing_stays(tmp_path: Path) -> None:
    code, said = check(tmp_path, kinds="trainjobs.trainer.kubeflow.org\\n")
    calls = (tmp_path / "calls").read_text()
    examples = len(EXAMPLES)
    assert (code, said.count("ok ")) == (0, 4 * examples + 1), said
    assert calls.count("--dry-run=server -f") == 2 * examples
    assert "delete namespace qwen-job-check" in calls.splitlines()[-1]


@pytest.mark.parametrize("answer", ["{ echo no >&2; exit 1; }", "echo 'Warning: would violate PodSecurity'"])
def test_a_refusal_or_a_warning_counts(tmp_path: Path, answer: str) -> None:
    code, said = check(tmp_path, answer=answer)
    assert code == 1 and "REFUSED demo as jobset" in said


def test_a_namespace_of_somebody_and_a_cluster_without_kinds_are_left_alone(tmp_path: Path) -> None:
    assert check(tmp_path, there=0)[0] == 2
    assert "create" not in (tmp_path / "calls").read_text()
    assert "no kind of job" in check(tmp_path, kinds="")[1]
