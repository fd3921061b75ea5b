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


RESOURCES = {"pytorchjob": "pytorchjobs", "trainjob": "trainjobs", "jobset": "jobsets"}


@pytest.mark.parametrize("kind", RESOURCES)
def test_on_kubernetes_a_second_job_evaluates_on_one_gpu(tmp_path: Path, kind: str) -> None:
    held_out = {"train": ["/runs/a.json"], "eval_split": 0.1}
    made = jobs(tmp_path, kubernetes={"kind": kind}, data=held_out, evaluate={**SUITE, "time": "2h"})
    evaluates, (pod, container) = made["tiny-evaluate"], container_of(made["tiny-evaluate"])
    options = ["--data", "/runs/tiny/held-out.jsonl", "--samples", "5", "--max-new-tokens", "128", *WORDS.split()]
    assert container["command"] == ["python3", "-m", "qwen_job", "evaluate", "/runs/tiny", *options]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    # No GPU is held while it waits.
    assert evaluates["spec"]["suspend"] is True and evaluates["spec"]["activeDeadlineSeconds"] == 7200
    assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("kind", RESOURCES)
def test_a_pod_without_gpus_starts_the_evaluation(tmp_path: Path, kind: str) -> None:
    made = jobs(tmp_path, kubernetes={"kind": kind, "queue": "kueue:team"}, evaluate=SUITE)
    pod, container = container_of(made["tiny-starter"])
    assert container["command"][2:] == [
        "qwen_job.node.start_evaluation", "--run", "/runs/tiny", "--job", f"{kind}/tiny", "--release", "tiny-evaluate",
        "--queue", "team",
    ]  # fmt: skip
    assert set(container["resources"]["limits"]) == {"cpu", "memory"} and pod["automountServiceAccountToken"] is True
    # Kueue would start a suspended Job that has the label.
    assert not any("kueue" in key for name in made for key in made[name]["metadata"]["labels"] if name != "tiny")
    (role,) = [one for one in objects(tmp_path, kubernetes={"kind": kind}, evaluate=SUITE) if one["kind"] == "Role"]
    allowed = [(rule["resources"], rule["resourceNames"], rule["verbs"]) for rule in role["rules"]]
    assert allowed == [([RESOURCES[kind]], ["tiny"], ["get"]), (["jobs"], ["tiny-evaluate"], ["get", "patch"])]


def test_the_first_pod_checks_the_suite_before_it_trains(tmp_path: Path) -> None:
    things = objects(tmp_path, evaluate=SUITE)
    own = [
        "python3",
        "-m",
        "qwen_job.node.suite_check",
        *(f"--word={word}" for word in WORDS.split()),
        "--",
        "--nnodes",
    ]
    assert commands(things[-1])[0][: len(own)] == own
    held_out = {"train": ["/runs/a.json"], "eval_split": 0.1}
    assert commands(objects(tmp_path, evaluate={}, data=held_out)[-1])[0][2] == "qwen_job.node.launcher"


def test_the_pod_that_prepares_checks_the_suite_first(tmp_path: Path) -> None:
    words = container_of(jobs(tmp_path, kubernetes={"prepare": True}, evaluate=SUITE)["tiny-prepare"])[1]["command"]
    assert words[2] == "qwen_job.node.prepare_job"
    assert [word.removeprefix("--word=") for word in words if word.startswith("--word=")] == WORDS.split()


def test_an_evaluation_that_the_user_starts_has_no_token(tmp_path: Path) -> None:
    data = {"train": "/runs/a.json"}
    made = bundle(tmp_path, "kubernetes", kubernetes={"suspend": True}, data=data, evaluate=SUITE)
    kinds = [thing["kind"] for thing in made.objects]
    assert kinds.count("Job") == 1 and not {"Role", "ServiceAccount"} & set(kinds)
    assert any("after the training: kubectl patch job tiny-evaluate --type merge" in note for note in made.notes)


def test_an_account_of_the_user_starts_the_evaluation(tmp_path: Path) -> None:
    section = {"prepare_account": "mine"}
    made = jobs(tmp_path, kubernetes=section, evaluate=SUITE)
    assert container_of(made["tiny-starter"])[0]["serviceAccountName"] == "mine"
    assert "Role" not in [thing["kind"] for thing in objects(tmp_path, kubernetes=section, evaluate=SUITE)]


def test_the_evaluation_has_its_share_of_the_node_and_the_users_fields(tmp_path: Path) -> None:
    section = {
        "cpu": "64", "memory": "800Gi", "node_selector": {"pool": "a"}, "resources": {"rdma/hca": "1"},
        "pod_container": {"resources": {"limits": {"nvidia.com/gpu": 8}}, "imagePullPolicy": "Always"},
    }  # fmt: skip
    eight = {"gpu": "A100-80G", "gpus_per_node": 8}
    pod, container = container_of(jobs(tmp_path, kubernetes=section, cluster=eight, evaluate=SUITE)["tiny-evaluate"])
    amounts = {"cpu": "8", "memory": "102400Mi", "nvidia.com/gpu": "1"}
    assert container["resources"] == {"requests": amounts, "limits": amounts}
    assert pod["nodeSelector"] == {"pool": "a"} and container["imagePullPolicy"] == "Always"


def objects(tmp_path: Path, **fields: Any) -> list[Any]:
    return list(bundle(tmp_path, "kubernetes", **{"data": {"train": "/runs/a.json"}, **fields}).objects)


def jobs(tmp_path: Path, **fields: Any) -> dict[str, Any]:
    """Return the training and the Jobs beside it by name."""
    found = objects(tmp_path, **fields)
    return {one["metadata"]["name"]: one for one in found if "template" in str(one.get("spec", {}))}


def container_of(job: Any) -> tuple[Any, Any]:
    pod = job["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


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
    assert words in made.files["tiny-evaluate.sbatch"] and "qwen_job evaluate /runs" not in made.files["tiny.sbatch"]
    # What the suite lacks is known before the training.
    assert f"-m qwen_job evaluate --check {WORDS}" in made.files["tiny.sbatch"]
    # Other nodes wait while the first one imports lm-eval, which can take minutes on a shared file system.
    assert "--rdzv_timeout 900" in made.files["tiny.sbatch"]


@pytest.mark.parametrize("target", ["hostfile", "local"])
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
