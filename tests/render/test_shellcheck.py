"""shellcheck finds nothing in any script, whatever the job asks for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen_job.job import load_job
from qwen_job.plan import make_plan
from qwen_job.render import render
from tests.jobs import EXAMPLES, bundle

SHELLCHECK = Path(sys.executable).with_name("shellcheck")
IMAGE = "registry.example.com/x:y"
ODD: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "env": {"A": "it's $(x) `y`", "B": "a\nb", "run": "x"}, "output": "/runs/a b'c",
        "slurm": {"modules": ["a b", "c"], "setup": ["source /opt/site.sh", "export X=1"], "time": "1d"},
    },
    "no requeue": {"slurm": {"requeue": False}},
    "no preflight": {"slurm": {"preflight": False}},
    **{name: {"image": IMAGE, "container": {"runtime": name}} for name in
       ("pyxis", "apptainer", "podman", "docker", "charliecloud")},
}  # fmt: skip


def check(folder: Path, files: dict[str, str]) -> None:
    scripts = {name: text for name, text in files.items() if text.startswith("#!")}
    for name, text in files.items():
        if "QWEN_JOB_NODE_END'" in text:
            scripts[f"{name}.node"] = text.split("QWEN_JOB_NODE_END'\n")[1].split("\nQWEN_JOB_NODE_END")[0] + "\n"
    assert scripts
    for name, text in scripts.items():
        (folder / name).write_text(text, "utf-8")
    done = subprocess.run(
        [SHELLCHECK, *(folder / name for name in scripts)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("job", ODD)
def test_a_slurm_script_is_clean(tmp_path: Path, job: str) -> None:
    check(tmp_path, bundle(tmp_path, "slurm", **ODD[job]).files)


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "pdsh"])
def test_a_hostfile_s_script_is_clean(tmp_path: Path, launcher: str) -> None:
    spares = ["c", "d"] if launcher == "torchrun" else []
    section = {
        "spare_hosts": spares,
        "hosts": "a",
        "launcher": launcher,
        "ssh_options": ["-p", "22 22" if launcher != "pdsh" else "2222"],
    }
    check(tmp_path, bundle(tmp_path, "hostfile", hostfile=section).files)


def test_a_local_script_is_clean(tmp_path: Path) -> None:
    check(tmp_path, bundle(tmp_path, "local", env={"A": "it's"}).files)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_s_scripts_are_clean(tmp_path: Path, path: Path) -> None:
    check(tmp_path, render(make_plan(load_job([path])), "slurm").files)
