"""Every way to write an option of Slurm's has its effect, or is refused by the field that was written."""

# ruff: noqa: E501 - tables, one case a line
from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from qwen_job.errors import JobError
from qwen_job.job import load_job
from qwen_job.job.slurm_options import KNOWN, option_name
from qwen_job.plan import make_plan
from qwen_job.render import render
from qwen_job.render.slurm.sbatch_options import sbatch_options
from tests.jobs import bundle, pinned_plan
from tests.render.slurm.reading import sbatch_lines, srun_words

TWO = {"nodes": 2}


def options(folder: Path, cluster: dict[str, Any] | None = None, **slurm: Any) -> dict[str, str | None]:
    return sbatch_options(pinned_plan(folder, slurm=slurm, cluster=cluster or {}))


def refused(folder: Path, cluster: dict[str, Any] | None = None, **slurm: Any) -> dict[str, str]:
    with pytest.raises(JobError) as caught:
        bundle(folder, "slurm", slurm=slurm, cluster=cluster or {})
    return {problem.field: problem.message for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("slurm", "gres", "gpus"),
    [
        ({"gpu_request": "gres", "sbatch": {"gres": "lscratch:100"}}, "gpu:2,lscratch:100", None),
        (
            {"gpu_request": "gres", "gpu_type": "x1", "sbatch": {"gres": "lscratch:100,nic:2"}},
            "gpu:x1:2,lscratch:100,nic:2",
            None,
        ),
        ({"sbatch": {"gres": "lscratch:100"}}, "lscratch:100", "2"),
        ({"gpu_request": "gres", "sbatch": {"gres": "gpu:a100:2,lscratch:5"}}, "gpu:a100:2,lscratch:5", None),
        ({"gpu_request": "gres", "sbatch": {"gres": "gpu:a:1,gpu:b:1"}}, "gpu:a:1,gpu:b:1", None),
        ({"sbatch": {"gres": "gpu:2"}}, "gpu:2", None),
        ({"gpu_request": "none", "sbatch": {"gres": "gpu:2"}}, "gpu:2", None),
        ({"sbatch": {"gpus-per-node": "a100:2"}}, None, "a100:2"),
        ({"gpu_request": "gres", "sbatch": {"gpus-per-node": 2}}, None, "2"),
        ({"gpu_request": "gres", "sbatch": {"gres": False}}, None, None),
        ({"gpu_type": "a100", "sbatch": {"gpus-per-node": "a100:2"}}, None, "a100:2"),
    ],
)
def test_gpus_are_asked_for_once_beside_all_else(
    tmp_path: Path, slurm: dict[str, Any], gres: str | None, gpus: str | None
) -> None:
    asked = options(tmp_path, **slurm)
    assert (asked.get("gres"), asked.get("gpus-per-node")) == (gres, gpus)


@pytest.mark.parametrize(
    ("name", "value"), [("gpus", "2"), ("gpus", "a100:2"), ("gpus-per-task", 2), ("tres-per-task", "cpu:4,gres/gpu:2")]
)
def test_another_way_that_gives_each_node_its_gpus_takes_the_planned_one_s_place(
    tmp_path: Path, name: str, value: Any
) -> None:
    asked = options(tmp_path, sbatch={name: value})
    assert asked[name] == str(value) and "gpus-per-node" not in asked


@pytest.mark.parametrize(
    ("cluster", "name", "value"),
    [
        (TWO, "gpus", "4"), ({"gpus_per_node": 8}, "gpus", "4"), ({}, "gres", "gpu:4"), ({}, "gres", "gpu"), ({}, "gpus-per-node", "a100:8"),
        ({}, "gpus-per-task", "1"), ({}, "gpus-per-socket", "2"), ({}, "tres-per-task", "gres/gpu:1"), ({}, "gpus", "many"),
        ({}, "gres", "gpu:a:2,gpu:b:2"), ({"gpu": "CPU"}, "gres", "gpu:2"),
    ],
)  # fmt: skip
def test_gpus_that_are_not_the_job_s_are_refused(
    tmp_path: Path, cluster: dict[str, Any], name: str, value: str
) -> None:
    assert list(refused(tmp_path, cluster, sbatch={name: value})) == [f"slurm.sbatch.{name}"]


def test_gpus_that_are_asked_for_twice_or_of_two_types_are_refused(tmp_path: Path) -> None:
    assert set(refused(tmp_path, sbatch={"gres": "gpu:2", "gpus": "2"})) == {"slurm.sbatch.gres", "slurm.sbatch.gpus"}
    assert set(refused(tmp_path, gpu_type="x1", sbatch={"gres": "gpu:v100:2"})) == {"slurm.sbatch.gres"}
    assert set(refused(tmp_path, srun={"gpus-per-node": 1})) == {"slurm.srun.gpus-per-node"}


@pytest.mark.parametrize(
    ("slurm", "fields"),
    [
        ({"memory": "9G", "sbatch": {"mem-per-gpu": "4G"}}, {"mem-per-gpu"}),
        ({"sbatch": {"mem": "9G", "mem-per-cpu": "4G"}}, {"mem", "mem-per-cpu"}),
        ({"cpus_per_task": 8, "sbatch": {"cpus-per-gpu": 4}}, {"cpus-per-gpu"}),
        ({"sbatch": {"cpus-per-task": 8, "cpus-per-gpu": 4}}, {"cpus-per-task", "cpus-per-gpu"}),
        ({"exclusive": True, "sbatch": {"oversubscribe": True}}, {"oversubscribe"}),
        ({"partition": "a", "sbatch": {"partition": "b"}}, {"partition"}),
        ({"time": "1h", "sbatch": {"time": "2:00:00"}}, {"time"}),
        ({"exclusive": False, "sbatch": {"exclusive": True}}, {"exclusive"}),
        ({"requeue": False, "sbatch": {"requeue": True}}, {"requeue"}),
        ({"sbatch": {"no-requeue": True}}, {"no-requeue"}),
        ({"sbatch": {"signal": "B:TERM@60", "ntasks": 4, "wrap": "true", "test-only": True}}, {"signal", "ntasks", "wrap", "test-only"}),
        ({"sbatch": {"mail-type": True, "hold": "yes", "contiguous": "x"}}, {"mail-type", "hold", "contiguous"}),
        ({"sbatch": {"nodelist": "n1", "nodefile": "f"}}, {"nodelist", "nodefile"}),
    ],
)  # fmt: skip
def test_options_that_contradict_are_refused_where_they_are_written(
    tmp_path: Path, slurm: dict[str, Any], fields: set[str]
) -> None:
    assert set(refused(tmp_path, **slurm)) == {f"slurm.sbatch.{field}" for field in fields}


def test_cpus_per_gpu_in_two_places_is_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, {"cpus_per_gpu": 4}, sbatch={"cpus-per-gpu": 4})["slurm.sbatch.cpus-per-gpu"]
    assert "cluster.cpus_per_gpu" in message


@pytest.mark.parametrize(
    "srun",
    [{"nodes": 1}, {"ntasks": 4}, {"export": "HF_TOKEN"}, {"export": "NONE"}, {"pty": True}, {"cpus-per-gpu": 2}],
)
def test_srun_s_options_leave_the_step_whole(tmp_path: Path, srun: dict[str, Any]) -> None:
    assert set(refused(tmp_path, srun=srun)) == {f"slurm.srun.{next(iter(srun))}"}


def test_the_same_value_twice_is_no_contradiction(tmp_path: Path) -> None:
    asked = options(tmp_path, partition="a", time="1h", sbatch={"partition": "a", "time": "1:00:00", "qos": False})
    assert (asked["partition"], asked["time"]) == ("a", "1:00:00")


@pytest.mark.parametrize(
    ("written", "right"),
    [
        ("A", "account"), ("-A", "account"), ("--A", "account"), ("G", "gpus"), ("c", "cpus-per-task"), ("cpus_per_gpu", "cpus-per-gpu"),
        ("cpus per gpu", "cpus-per-gpu"), ("Partition", "partition"), ("MEM_PER_CPU", "mem-per-cpu"), ("gpus-per-n", "gpus-per-node"),
        ("depend", "dependency"), ("mail-type ", "mail-type"), ("", "mail-type"), ("时间", "mail-type"),
    ],
)  # fmt: skip
def test_another_way_to_write_a_name_is_refused_with_the_right_one(written: str, right: str) -> None:
    with pytest.raises(ValueError, match=f"write .*{right}"):
        option_name(written)


def test_every_option_of_slurm_and_a_site_s_own_are_taken() -> None:
    assert [option_name(name) for name in sorted(KNOWN)] == sorted(KNOWN)
    assert option_name("--mail-type") == "mail-type" and option_name("our-plugin2") == "our-plugin2"


FIVE = "name: t\nmodel: Qwen/Qwen-1_8B-Chat\ndata: /data/c.json\noutput: /runs/t\ncluster: {gpu: A100-80G, gpus_per_node: 8}\n"


def five(folder: Path, text: str = "") -> Any:
    (folder / "job.yaml").write_text(FIVE + text)
    return make_plan(load_job([folder / "job.yaml"], environ={}))


def test_five_lines_ask_for_the_cpus_and_the_memory_of_the_plan(tmp_path: Path) -> None:
    plan = five(tmp_path)
    made = render(plan, "slurm")
    lines = sbatch_lines(made.text)
    need = plan.memory.host_bytes - plan.memory.host["states in memory"]
    (memory,) = [int(line.removeprefix("--mem=").removesuffix("G")) for line in lines if line.startswith("--mem=")]
    assert 0 <= memory * 2**30 - need < 2**30 and "--cpus-per-task=16" in lines
    assert "--cpus-per-task=16" in srun_words(made.text)
    assert any(note.startswith("slurm.cpus_per_task: not set") for note in made.notes)
    (note,) = [note for note in made.notes if note.startswith(f"train.memory_save_steps: auto: --mem={memory}G has no")]
    found = re.search(r"write slurm\.memory: (\d+)G or slurm\.exclusive: true", note)
    assert found is not None and int(found[1]) > memory + plan.memory.host["states in memory"] / 2**30
    kept = (f"slurm: {{memory: {found[1]}G}}\n", "slurm: {exclusive: true}\n")
    for made in (five(tmp_path, text) for text in kept):
        assert made.memory_save_steps == "auto" and made.memory.states_bytes == plan.memory.states_bytes
        assert not any("states in memory" in note for note in render(made, "slurm").notes)
    assert five(tmp_path, f"slurm: {{memory: {int(found[1]) - 1}G}}\n").memory_save_steps == 0


def test_states_in_memory_that_are_asked_for_get_their_memory(tmp_path: Path) -> None:
    plan = five(tmp_path, "train: {memory_save_steps: 20}\n")
    made = render(plan, "slurm")
    assert f"#SBATCH --mem={math.ceil(plan.memory.host_bytes / 2**30)}G" in made.text
    assert not any(note.startswith("train.memory_save_steps") for note in made.notes)


def test_whole_nodes_are_asked_for_whole(tmp_path: Path) -> None:
    for text in ("slurm: {exclusive: true}\n", "slurm: {sbatch: {exclusive: true}}\n"):
        asked = sbatch_options(five(tmp_path, text))
        assert asked["mem"] == "0" and asked["exclusive"] is None and "cpus-per-task" not in asked
    assert "mem" not in sbatch_options(five(tmp_path, "slurm: {exclusive: true, sbatch: {mem: false}}\n"))


def test_what_the_plan_does_not_know_is_said(tmp_path: Path) -> None:
    notes = bundle(tmp_path, "slurm").notes
    assert [note.partition(":")[0] for note in notes] == ["slurm.cpus_per_task", "slurm.memory"]
    assert bundle(tmp_path, "slurm", slurm={"memory": "9G"}, cluster={"cpus_per_gpu": 4}).notes == ()
    (note,) = bundle(tmp_path, "slurm", slurm={"memory": "9G", "cpus_per_task": 1}).notes
    assert note.startswith("slurm.cpus_per_task: 1 CPUs for 2 processes")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("slurm: {memory: 400M}", "slurm.memory"), ("slurm: {memory: 8G}", "slurm.memory"), ("slurm: {sbatch: {mem: 8G}}", "slurm.sbatch.mem"),
        ("slurm: {sbatch: {mem-per-gpu: 1G}}", "slurm.sbatch.mem-per-gpu"),
        ("slurm: {cpus_per_task: 8, sbatch: {mem-per-cpu: 500}}", "slurm.sbatch.mem-per-cpu"),
    ],
)  # fmt: skip
def test_memory_below_the_plan_s_is_refused_by_its_field(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(JobError) as caught:
        render(five(tmp_path, text), "slurm")
    (problem,) = caught.value.problems
    assert problem.field == field and problem.line == 6 and "or 0 for the whole node" in problem.message


@pytest.mark.parametrize(
    "text",
    ["slurm: {memory: 0}", "slurm: {memory: 400G}", "slurm: {memory: 1t}", "slurm: {sbatch: {mem-per-gpu: 50G}}"],
)
def test_memory_that_is_enough_is_asked_for_as_written(tmp_path: Path, text: str) -> None:
    asked = sbatch_options(five(tmp_path, text))
    assert (asked.get("mem") or asked.get("mem-per-gpu")) in text


def test_the_follow_up_and_a_sweep_ask_for_what_they_need(tmp_path: Path) -> None:
    text = "evaluate: {data: /data/h.json}\nsweep: {train.model_max_length: [512, 2048], train.dataloader_num_workers: [1, 3]}\n"
    made = render(five(tmp_path, text), "slurm")
    training, after = (dict(line[2:].partition("=")[::2] for line in sbatch_lines(t)) for t in made.files.values())
    assert int(training["mem"][:-1]) > int(after["mem"][:-1]) > 0
    assert int(training["cpus-per-task"]) == 32 and after["gpus-per-node"] == "1"
