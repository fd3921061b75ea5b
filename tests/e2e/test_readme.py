"""Every command in the README's shell blocks, in both languages, and in the guide to training, run as it stands there.

What is not here is stood in for, or left out (downloads): sbatch and kubectl take what is piped to them, python3 takes
the local job's training (the demo covers that), torchrun hands its words to the trainer's own reader, and the demo's
model and job stand for those of a hub and of a cluster's storage. Helm is the real one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.steps import CHECKOUT
from tests.support.helm import helm
from tests.support.pages import blocks

pytestmark = [pytest.mark.train, pytest.mark.slow]

READMES = ("README.md", "README.zh-CN.md")
STUBS = {
    "sbatch": 'script=$(cat); case $script in "#!/bin/bash"*"#SBATCH"*) echo "Batch job 1" ;; *) exit 1 ;; esac',
    "kubectl": 'manifest=$(cat); case $manifest in *"kind: PyTorchJob"*) echo applied ;; *) exit 1 ;; esac',
    "python3": 'case $1 in -c) echo 29501 ;; *) echo "$@" | grep -q qwen_job.node.launcher ;; esac',
    "torchrun": f'shift 4; {sys.executable} -c "'
    "import sys; from qwen_job.train.flags import parse_flags; parse_flags(sys.argv[1:])"
    '" "$@"',
}


def test_both_readmes_have_the_same_commands() -> None:
    english, chinese = ([re.sub(r"\s+#.*", "", block) for block in blocks(CHECKOUT / name, "sh")] for name in READMES)
    assert english == chinese


def test_the_two_commands_are_targets_of_make() -> None:
    targets = re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)


def test_every_command_of_the_readme_runs(demo: tuple[Path, str], tmp_path: Path) -> None:
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name, body in STUBS.items():
        (stubs / name).write_text(f"#!/bin/bash\n{body}\n")
        (stubs / name).chmod(0o755)
    (stubs / "helm").symlink_to(helm())
    work = tmp_path / "work"
    work.mkdir()
    (work / "charts").symlink_to(CHECKOUT / "charts")
    shutil.copy(CHECKOUT / "configs" / "sites" / "plain.yaml", work / "site.yaml")
    shutil.copy(CHECKOUT / "configs" / "data" / "demo_eval.json", work / "held-out.json")
    (work / "ds_config_zero2.json").write_text('{"zero_optimization": {"stage": 2}}')
    (work / "chats.json").symlink_to(CHECKOUT / "configs" / "data" / "demo.json")
    shown = blocks(CHECKOUT / "README.md", "sh") + blocks(CHECKOUT / "docs" / "training.md", "sh")
    # What asks a hub.
    remote = ("qwen-job model fetch", "qwen-job data fetch", "qwen-job evaluate --check", "qwen-job model push")
    script = "set -euo pipefail\n" + "\n".join(block for block in shown if not block.startswith(("make ", *remote)))
    for shown_word, word in {
        # The demo holds no rows out.
        "evaluate /shared/runs/my-run": "evaluate /shared/runs/my-run --data held-out.json",
        "/shared/runs/my-run": f"'{demo[0]}'",
        "helm install my-run": "helm install --dry-run=client my-run",
        "submit job.yaml --target local": "submit job.yaml --target local --set local.python=python3",
        "data check job.yaml": f"data check {CHECKOUT}/configs/jobs/demo.yaml",
        "--model Qwen/Qwen3-8B": f"--model '{demo[0]}/model'",
    }.items():
        assert shown_word in script
        script = script.replace(shown_word, word)
    path = f"{stubs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "XDG_STATE_HOME": str(tmp_path / "state"), "NO_COLOR": "1"}
    done = subprocess.run(
        ["bash", "-x", "-c", script],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("你好！") >= 2
    assert (work / "clean.jsonl").is_file() and (work / "original" / "qwen.tiktoken").is_file()
