"""The evaluation after training on this machine and over ssh: when it runs, with what words, and which code is left."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qwen_job.errors import JobError
from tests.jobs import bundle

# The job's Python: notes its words, and trains and evaluates as the files beside it say.
PYTHON = """#!/bin/bash
echo "$*" >> "$0.calls"
case "$*" in
  *socket*) echo 29500 ;;
  *"evaluate --check"*) exit "$(cat "$0.check" 2> /dev/null || echo 0)" ;;
  *node.launcher*) [ ! -e "$0.fails" ] || exit 1; touch "{run}/done.json" ;;
  *"qwen_job evaluate"*) exit "$(cat "$0.score" 2> /dev/null || echo 0)" ;;
esac
"""
SUITE: dict[str, Any] = {"suite": {"tasks": ["gsm8k", "mmlu"], "limit": 10, "few_shot": 0, "chat_template": False}}
WORDS = "--task gsm8k --task mmlu --limit 10 --few-shot 0 --no-chat-template"


class Here:
    """A local job with that Python."""

    def __init__(self, folder: Path, **files: str) -> None:
        self.run, self.python = folder / "run", folder / "python"
        self.python.write_text(PYTHON.replace("{run}", str(self.run)))
        self.python.chmod(0o755)
        for name, text in files.items():
            (folder / f"python.{name}").write_text(text)
        made = bundle(folder, "local", output=str(self.run), local={"python": str(self.python)}, evaluate=SUITE)
        done = subprocess.run(["bash", "-s"], input=made.text, capture_output=True, text=True, check=False)
        self.code, self.stderr = done.returncode, done.stderr
        calls = (folder / "python.calls").read_text().splitlines()
        self.calls = [call.partition("-m qwen_job")[2].split()[0] + call for call in calls if "-m qwen_job" in call]


def test_the_suite_is_checked_before_the_training_and_run_after_it(tmp_path: Path) -> None:
    here = Here(tmp_path)
    check, train, score = here.calls
    assert check.endswith(f"-m qwen_job evaluate --check {WORDS}") and "node.launcher" in train
    assert score.endswith(f"-m qwen_job evaluate {here.run} {WORDS}") and here.code == 0


def test_a_suite_that_cannot_run_ends_the_job_before_the_training(tmp_path: Path) -> None:
    here = Here(tmp_path, check="5")
    assert here.code == 5 and len(here.calls) == 1


def test_a_training_that_fails_is_not_evaluated(tmp_path: Path) -> None:
    here = Here(tmp_path, fails="")
    assert here.code == 1 and len(here.calls) == 2


def test_an_evaluation_that_fails_keeps_its_code_and_tells_how_to_repeat_it(tmp_path: Path) -> None:
    here = Here(tmp_path, score="4")
    assert here.code == 4
    assert f"its evaluation failed; to repeat it: qwen-job evaluate {here.run} {WORDS}" in here.stderr


def test_over_ssh_the_first_node_evaluates(tmp_path: Path) -> None:
    hosts: dict[str, Any] = {"hosts": ["a", "b"]}
    made = bundle(tmp_path, "hostfile", cluster={"gpu": "A100-80G", "nodes": 2}, hostfile=hosts, evaluate=SUITE)
    assert f'"${{python[@]}}" -m qwen_job evaluate /runs/tiny {WORDS}' in made.files["launch.sh"]
    other = bundle(
        tmp_path, "hostfile", cluster={"gpu": "A100-80G", "nodes": 2}, hostfile={**hosts, "launcher": "pdsh"},
        evaluate=SUITE,
    )  # fmt: skip
    assert "qwen_job evaluate" not in other.files["launch.sh"]
    assert any(note.endswith(f"after the training run: qwen-job evaluate /runs/tiny {WORDS}") for note in other.notes)


@pytest.mark.parametrize("kind", ["pytorchjob", "trainjob", "jobset"])
def test_in_pods_the_first_one_evaluates(tmp_path: Path, kind: str) -> None:
    held_out = {"train": ["/runs/a.json"], "eval_split": 0.1}
    made = bundle(tmp_path, "kubernetes", kubernetes={"kind": kind}, data=held_out, evaluate=SUITE)
    options = ["--data", "{run}/held-out.jsonl", "--samples", "5", "--max-new-tokens", "128", *WORDS.split()]
    own = ["python3", "-m", "qwen_job.node.evaluating", *(f"--word={word}" for word in options), "--", "--nnodes"]
    assert [words[: len(own)] for words in commands(made.objects)] == [own]


def commands(value: Any) -> list[list[str]]:
    """Return the command of every container inside some objects."""
    if isinstance(value, Mapping):
        return [value["command"]] if "command" in value else commands(list(value.values()))
    return [words for one in value for words in commands(one)] if isinstance(value, (list, tuple)) else []


def test_data_that_no_pod_sees_is_refused(tmp_path: Path) -> None:
    volumes = [{"name": "runs", "mount_path": "/runs", "pvc": "a"}, {"name": "data", "mount_path": "/data", "pvc": "b"}]
    with pytest.raises(JobError, match=r"evaluate\.suite\.folder: '/tasks' is not below any volume"):
        bundle(tmp_path, "kubernetes", kubernetes={"volumes": volumes}, model={"cache_dir": "/runs/cache"},
               evaluate={"suite": {"folder": "/tasks"}})  # fmt: skip


def test_on_slurm_the_job_that_waits_runs_the_suite(tmp_path: Path) -> None:
    made = bundle(tmp_path, "slurm", evaluate={**SUITE, "data": "/held.json", "before": False})
    words = f"evaluate /runs/tiny --data /held.json --samples 5 --max-new-tokens 128 {WORDS} --no-before"
    assert words in made.files["tiny-evaluate.sbatch"] and "qwen_job evaluate" not in made.files["tiny.sbatch"]


@pytest.mark.parametrize("target", ["kubernetes", "helm", "hostfile", "local"])
def test_a_time_limit_that_no_target_has_is_a_note(tmp_path: Path, target: str) -> None:
    made = bundle(
        tmp_path, target, hostfile={"hosts": ["a"]}, data={"train": ["/runs/a.json"]}, evaluate={**SUITE, "time": "1h"}
    )
    assert any(note.startswith("evaluate.time") and f": not used on {target}" in note for note in made.notes)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("slurm", "on the nodes: pip install 'qwen-job[eval]'; and the data"),
        ("local", "on the nodes: pip install 'qwen-job[eval]'; and the data"),
        ("kubernetes", "in the image: 'make image PACKAGES=lm-eval'; and the data"),
    ],
)
def test_what_the_suite_needs_is_a_note(tmp_path: Path, target: str, words: str) -> None:
    made = bundle(tmp_path, target, data={"train": "/runs/chats.json"}, evaluate=SUITE)
    assert any(note.startswith(f"evaluate.suite: lm-eval must be {words}") for note in made.notes)


def test_on_slurm_in_an_image_the_suite_needs_its_package_there(tmp_path: Path) -> None:
    made = bundle(tmp_path, "slurm", image="x/y:1", container={"runtime": "pyxis"}, evaluate=SUITE)
    assert any("'make image PACKAGES=lm-eval'" in note for note in made.notes)
