"""Sweeps, chains, jobs that wait for others, and the doctor, on a real Slurm: what users type, on the login node."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.steps import CHECKOUT, environment, metrics
from tests.jobs import PINNED
from tests.slurmlab import Lab

pytestmark = [pytest.mark.slurm, pytest.mark.train, pytest.mark.slow]

HELD_OUT = CHECKOUT / "configs" / "data" / "demo_eval.json"
TINY = {
    "name": "grid",
    "model": {"name": "qwen2-tiny", "source": "random"},
    "data": {"train": str(CHECKOUT / "configs" / "data" / "demo.json"), "eval": str(HELD_OUT)},
    "output": "runs/grid",
    "cluster": {"gpu": "CPU", "gpus_per_node": 1},
    "train": {
        "model_max_length": 128, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_steps": 50,
        "save_steps": 25,
    },
    "deepspeed": {"zero_stage": 2},
    "slurm": {"python": sys.executable},
    "evaluate": {"samples": 1, "max_new_tokens": 4, "before": False},
}  # fmt: skip
# Stands in for the training: what the scripts and Slurm do is looked at alone.
STAND_IN = """#!/bin/bash
case "$*" in
  *qwen_job.node.launcher*) {train} ;;
  *"qwen_job evaluate"*) echo '{{}}' > "$4/evaluation.json" ;;
esac
"""


class User:
    """Somebody on the login node, in a folder of their own."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.env = environment(XDG_STATE_HOME=str(folder / "state"))

    def write(self, **sections: Any) -> None:
        """Write job.yaml: the tiny job with ``sections`` laid over it."""
        (self.folder / "job.yaml").write_text(yaml.safe_dump({**TINY, **sections}))

    def stand_in(self, train: str) -> dict[str, str | bool]:
        """Return slurm's section for a Python that does ``train`` (shell) instead of training."""
        python = self.folder / f"python{len(list(self.folder.glob('python*')))}"
        python.write_text(STAND_IN.format(train=train))
        python.chmod(0o755)
        return {"python": str(python), "preflight": False}

    def run(self, line: str, *, check: bool = True) -> tuple[str, str]:
        """Run a line of shell and return what it says on stdout and on stderr."""
        done = self.lab.on("ctl", line, cwd=self.folder, env=self.env, check=check)
        return done.stdout.strip(), done.stderr.strip()

    def submit(self, words: str = "") -> tuple[int, int]:
        """Submit job.yaml and return the id of the job and that of the one that waits for it (0: none)."""
        out, err = self.run(f"qwen-job submit job.yaml --target slurm {words}")
        waiting = re.search(r"\bjob (\d+) waits for", err)
        return int(out), int(waiting[1]) if waiting else 0

    def states(self, job: int) -> dict[str, tuple[str, str]]:
        """Return task -> state and restarts of an array's tasks, or of a job under its own number."""
        shown = self.run(f"scontrol show job -o {job}")[0].splitlines()
        fields = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in shown]
        return {one.get("ArrayTaskId", "job"): (one["JobState"], one["Restarts"]) for one in fields}

    def wait(self, check: Callable[[], bool], what: str, job: int, timeout: float = 180) -> None:
        """Wait until ``check`` is true."""
        self.lab.wait(check, timeout, what, job=job)

    def wait_states(self, job: int, wanted: list[str]) -> None:
        """Wait until the tasks, in their order, are in these states."""

        def reached() -> bool:
            now = self.states(job)
            return [now[task][0] for task in sorted(now)] == wanted

        self.wait(reached, f"the tasks are {wanted}", job)

    def said(self, pattern: str) -> str:
        """Return what the logs of that name hold."""
        return "".join(path.read_text() for path in sorted(self.folder.glob(pattern)))


@pytest.fixture
def user(slurm: Lab, tmp_path: Path) -> User:
    return User(slurm, tmp_path)


def steps_done(run: Path) -> int:
    return len(metrics(run, "step")) if (run / "metrics.jsonl").exists() else 0


def test_a_sweep_is_one_array_whose_tasks_stop_resume_and_are_measured_each_by_itself(user: User) -> None:
    user.write(sweep={"train.learning_rate": [2e-3, 1e-5]})
    array, after = user.submit()
    good, poor = (user.folder / "runs" / "grid" / f"learning_rate={rate}" for rate in ("0.002", "1e-05"))
    user.wait(lambda: steps_done(poor) >= 5, "the second run trains", array)
    # The number of an array's last task is the array's own, too: only this task may be requeued.
    user.run(f"scancel --batch --signal=USR1 {array}_1")
    user.wait_states(array, ["COMPLETED", "COMPLETED"])
    assert [restarts for _, restarts in user.states(array).values()].count("0") == 1
    assert [line["attempt"] for line in metrics(good, "start")] == [0]
    assert [line["attempt"] for line in metrics(poor, "start")] == [0, 1]
    assert [line["step"] for line in metrics(poor, "step")] == list(range(1, 51))
    tokens = [(run / "launch" / "token").read_text().strip() for run in (good, poor)]
    assert tokens == [f"{array}_0-0", f"{array}_1-1"]
    rendezvous = {
        line.split("rendezvous ")[1].split()[0]
        for line in user.said("grid-*_?.out").splitlines()
        if "rendezvous node" in line and "newest" in line
    }
    assert len(rendezvous) == 2, "two tasks on one node met at one port"
    user.wait_states(after, ["COMPLETED", "COMPLETED"])
    table = json.loads(user.run("qwen-job sweep job.yaml --json")[0])
    assert [(row["values"]["train.learning_rate"], row["state"], row["step"]) for row in table] == [
        (2e-3, "done", 50), (1e-5, "done", 50),
    ]  # fmt: skip
    assert table[0]["eval_loss"] < table[1]["eval_loss"]
    measured = json.loads((good / "evaluation.json").read_text())
    assert measured["after"]["loss"] == pytest.approx(table[0]["eval_loss"], rel=0.05)
    shown = json.loads(user.run(f"qwen-job status {array} --json")[0])
    assert {(item["id"], item["run"]) for item in shown} == {(f"{array}_0", str(good)), (f"{array}_1", str(poor))}


def test_a_chain_goes_on_where_the_last_link_stopped_and_ends_at_once_when_done(user: User) -> None:
    user.write()
    chain, after = user.submit("--chain 3")
    run = user.folder / "runs" / "grid"
    user.wait(lambda: steps_done(run) >= 5, "the first link trains", chain)
    # Slurm 22.05 hands the signal over and then says that the array is done already (exit code 229).
    user.run(f"scancel --batch --signal=USR1 {chain}_0", check=False)
    user.wait_states(chain, ["FAILED", "COMPLETED", "COMPLETED"])
    assert [line["step"] for line in metrics(run, "step")] == list(range(1, 51))
    assert metrics(run, "start")[1]["resumed_from"] == metrics(run, "stop")[0]["step"]
    said = user.said(f"grid-{chain}.out")
    assert "the next link resumes from checkpoint" in said and "is complete (done.json)" in said
    user.wait_states(after, ["COMPLETED"])
    assert json.loads((run / "evaluation.json").read_text())["after"]["loss"] > 0


def test_a_chain_ends_with_a_user_s_error(user: User) -> None:
    user.write(slurm=user.stand_in("exit 4"))
    chain, _ = user.submit("--chain 4")
    user.wait_states(chain, ["FAILED", "CANCELLED"])  # Slurm keeps one record of those that never began
    assert user.said(f"grid-{chain}.out").count("failed with exit code 4, which is final") == 1


def test_jobs_wait_for_others_by_name_and_never_for_what_cannot_happen(user: User) -> None:
    wait = f"until [ -e '{user.folder}/go' ]; do sleep 0.1; done"
    user.write(
        slurm=user.stand_in(f"{wait}; echo '{{}}' > \"$RUN/done.json\""), env={"RUN": str(user.folder / "runs/grid")}
    )
    first, measured = user.submit()
    user.write(name="second", output="runs/second", slurm=user.stand_in("exit 4"), env={"RUN": "x"})
    second, never = user.submit("--after grid")
    assert user.lab.job(second)["JobState"] == "PENDING"
    (user.folder / "go").touch()
    user.wait_states(measured, ["COMPLETED"])
    user.wait_states(second, ["FAILED"])
    user.wait_states(never, ["CANCELLED"])
    assert user.lab.job(second)["StartTime"] >= user.lab.job(first)["EndTime"]
    assert (user.folder / "runs" / "grid" / "evaluation.json").exists()


def test_the_doctor_s_profile_makes_a_job_that_slurm_takes(user: User) -> None:
    text, said = user.run("qwen-job doctor --target slurm")
    assert yaml.safe_load(text)["cluster"] == {
        "gpu": "H100-80G", "gpus_per_node": 8, "cpus_per_gpu": 2, "memory_gib": 15.6,
    }  # fmt: skip
    assert yaml.safe_load(text)["slurm"] == {"partition": "main", "gpu_request": "gpus-per-node", "memory": "0"}
    assert "other partitions with GPUs: high" in said and "no time limit" in said
    user.run("qwen-job doctor --target slurm -o site.yaml")
    assert (user.folder / "site.yaml").read_text().strip() == text
    assert "already exists" in user.run("qwen-job doctor --target slurm -o site.yaml", check=False)[1]
    job = {**PINNED, "cluster": {"nodes": 2}}
    (user.folder / "job.yaml").write_text(yaml.safe_dump(job))
    _, judged = user.run("qwen-job render -f site.yaml job.yaml --target slurm | sbatch --test-only")
    assert "to start at" in judged and "32 processors on nodes node[1-2]" in judged


@pytest.mark.parametrize(
    ("field", "assignment"),
    [
        ("slurm.partition", "slurm.partition=nope"),
        ("cluster.gpus_per_node", "cluster.gpus_per_node=9"),
        ("slurm.gpu_type", "slurm.gpu_type=b200"),
        ("cluster.nodes", "cluster.nodes=3"),
        ("slurm.spare_nodes with cluster.nodes", "slurm.spare_nodes=9"),
        ("slurm.reservation", "slurm.reservation=nope"),
        ("slurm.constraint", "slurm.constraint=nope"),
        ("slurm.memory", "slurm.memory=900G"),
        ("slurm.sbatch.mem", "slurm.sbatch.mem=900G"),
        ("slurm.sbatch.gres", "slurm.sbatch.gres=lscratch:100"),
        ("slurm.sbatch.gres", "'slurm={gpu_request: gres, sbatch: {gres: lscratch:100}}'"),
        ("slurm.gpu_type", "'slurm={gpu_type: b200, sbatch: {nice: 3}}'"),
        ("slurm.sbatch.no-such", "'slurm.sbatch={no-such: x}'"),
        ("slurm.time", "'slurm={partition: short, time: 2h}'"),
        ("slurm.sbatch.time", "'slurm={partition: short, sbatch: {time: 1-12}}'"),
        ("slurm.sbatch.mail-type", "'slurm.sbatch={mail-type: NEVER}'"),
        ("slurm.sbatch.nodelist", "'slurm.sbatch={nodelist: nowhere}'"),
    ],
)
def test_what_slurm_would_refuse_is_refused_before_by_its_field(user: User, field: str, assignment: str) -> None:
    (user.folder / "job.yaml").write_text(yaml.safe_dump(PINNED))
    if "short" in assignment:  # over its limit, which sbatch takes as long as EnforcePartLimits is off
        user.run("scontrol show partition short || scontrol create PartitionName=short Nodes=ALL MaxTime=1:00:00")
    _, said = user.run(f"qwen-job submit job.yaml --target slurm --set {assignment}", check=False)
    assert said.splitlines()[-1].startswith(f"error: {field}: "), said


def test_an_output_folder_of_one_node_ends_the_job_by_its_field(user: User) -> None:
    user.write(cluster={"gpu": "CPU", "gpus_per_node": 1, "nodes": 2}, output="/tmp/of-one-node/run")
    job, _ = user.submit("--set evaluate=null")
    user.wait_states(job, ["FAILED"])
    assert user.lab.job(job)["ExitCode"] == "5:0"
    said = user.said(f"grid-{job}.out")
    assert "output: /tmp/of-one-node/run on node2 is not the folder that the first node sees" in said
    assert "put output on shared storage" in said
