"""The #SBATCH lines and srun's options."""

# ruff: noqa: E501 - tables, one case a line
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen_job.errors import JobError
from qwen_job.render.slurm.sbatch_options import sbatch_options, slurm_time
from tests.jobs import bundle, pinned_plan
from tests.render.slurm.reading import srun_words

LONG = "x" * 1001


def options(folder: Path, **slurm: Any) -> dict[str, str | None]:
    return sbatch_options(pinned_plan(folder, slurm=slurm))


def refusal(folder: Path, **sections: Any) -> str:
    with pytest.raises(JobError) as caught:
        bundle(folder, "slurm", **sections)
    return str(caught.value).replace(f"{folder}/", "")


def test_the_plain_job_asks_for_its_machines(tmp_path: Path) -> None:
    assert options(tmp_path) == {
        "job-name": "tiny", "nodes": "1", "ntasks-per-node": "1", "gpus-per-node": "2", "cpus-per-task": "4", "output": "%x-%j.out",
        "open-mode": "append", "requeue": None, "signal": "B:USR1@240", "comment": "qwen-job:/runs/tiny",
    }  # fmt: skip


def test_sites_ask_for_gpus_in_their_way(tmp_path: Path) -> None:
    assert options(tmp_path, gpu_request="gres", gpu_type="x1")["gres"] == "gpu:x1:2"
    assert options(tmp_path, gpu_type="x1")["gpus-per-node"] == "x1:2"
    assert not {"gres", "gpus-per-node"} & set(options(tmp_path, gpu_request="none"))


def test_any_option_is_laid_over_ours(tmp_path: Path) -> None:
    written = {"--mail-type": "END", "requeue": False, "nice": 10, "contiguous": True, "spread-job": None}
    merged = options(tmp_path, sbatch=written)
    assert merged["mail-type"] == "END" and merged["nice"] == "10" and "requeue" not in merged
    assert merged["contiguous"] is None and merged["spread-job"] is None


def test_the_signal_leaves_time_to_save(tmp_path: Path) -> None:
    assert options(tmp_path, time="12:00:00")["signal"] == "B:USR1@240"
    assert options(tmp_path, time="2m")["signal"] == "B:USR1@60"
    assert options(tmp_path, time="12h", signal_seconds=600)["signal"] == "B:USR1@600"
    assert options(tmp_path, sbatch={"time": "1-12"})["signal"] == "B:USR1@240"
    assert options(tmp_path, sbatch={"time": "2"})["signal"] == "B:USR1@60"
    assert options(tmp_path)["signal"] == "B:USR1@240", "a partition has a limit, too"
    assert "signal" not in options(tmp_path, signal_seconds=0)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1:30", 90),
        ("90:00", 5400),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("1:2:3", 3723),
        ("36:00:00", 129600),
        ("2h30m", 9000),
    ],
)
def test_a_time_is_read_as_sbatch_reads_it(tmp_path: Path, written: str, seconds: int) -> None:
    assert options(tmp_path, time=written)["time"] == slurm_time(seconds)


@pytest.mark.parametrize("written", ["99:99:99", "1-36:00", "90:99", "1:2:3:4", "-5"])
def test_a_time_that_is_none_is_refused(tmp_path: Path, written: str) -> None:
    assert f"slurm.time: '{written}' is not a Slurm time: write 2h30m" in refusal(tmp_path, slurm={"time": written})


def test_many_nodes_are_exclusive_by_default(tmp_path: Path) -> None:
    two = pinned_plan(tmp_path, cluster={"nodes": 2, "cpus_per_gpu": 8})
    assert sbatch_options(two)["exclusive"] is None and sbatch_options(two)["cpus-per-task"] == "16"
    assert "exclusive" not in sbatch_options(pinned_plan(tmp_path, cluster={"nodes": 2}, slurm={"exclusive": False}))


def test_the_log_s_folder_is_no_pattern(tmp_path: Path) -> None:
    assert options(tmp_path, log_dir="/logs/100%/")["output"] == "/logs/100%%/%x-%j.out"


@pytest.mark.parametrize(
    ("seconds", "text"), [(90, "00:01:30"), (45000, "12:30:00"), (86400, "1-00:00:00"), (90061, "1-01:01:01")]
)
def test_times(seconds: int, text: str) -> None:
    assert slurm_time(seconds) == text


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"slurm": {"sbatch": {"nodes": 3}}}, "slurm.sbatch.nodes: is planned from cluster"),
        ({"slurm": {"memory": "lots"}}, "slurm.memory: 'lots' is not a valid --mem: write 400G"),
        ({"slurm": {"gpu_type": "a100:8"}}, "slurm.gpu_type: 'a100:8' is not a GPU type: write only its name"),
        ({"slurm": {"srun": {"-n": 3}}}, "slurm.srun.-n: '-n' is a short option: write the long name, ntasks"),
        ({"slurm": {"time": "5m", "signal_seconds": 400}}, "slurm.signal_seconds: 400 s is longer than"),
        ({"slurm": {"partition": LONG}}, "slurm.partition: is over 1000 bytes"),
        ({"slurm": {"gpu_type": LONG}}, "slurm.gpu_type: is over 1000 bytes"),
        ({"slurm": {"log_dir": LONG}}, "slurm.log_dir: is over 1000 bytes"),
        ({"slurm": {"sbatch": {"comment": LONG}}}, "slurm.sbatch.comment: is over 1000 bytes"),
        ({"container": {"runtime": "pyxis"}}, "container.runtime pyxis needs an image"),
        ({"image": "i", "container": {"runtime": "docker", "mounts": ["x:y"]}}, "container.mounts[0]: 'x:y' is not"),
        ({"image": "i", "container": {"runtime": "pyxis"}, "output": "/a,b"}, "output: pyxis cannot mount '/a,b': it contains a comma"),
        ({"image": "i", "container": {"runtime": "docker"}, "data": {"train": "/a:b/c.json"}}, "data.train[0].path: docker cannot mount '/a:b': it contains a colon"),
    ],
)  # fmt: skip
def test_what_slurm_or_a_runtime_cannot_hold_is_refused_by_its_field(
    tmp_path: Path, sections: dict[str, Any], field: str
) -> None:
    assert field in refusal(tmp_path, **sections)


def test_all_refusals_come_at_once(tmp_path: Path) -> None:
    assert refusal(tmp_path, slurm={"partition": LONG, "account": LONG}).count("\n") == 1


def test_a_run_s_folder_that_no_comment_holds_is_left_out(tmp_path: Path) -> None:
    assert "comment" not in sbatch_options(pinned_plan(tmp_path, output=f"/runs{'/long' * 250}"))


def test_srun_gets_the_cpus_and_the_user_s_options(tmp_path: Path) -> None:
    text = bundle(tmp_path, "slurm", slurm={"cpus_per_task": 4, "srun": {"mpi": "pmix", "wait": False}}).text
    words = srun_words(text)
    assert "--cpus-per-task=4" in words and "--mpi=pmix" in words and not any(w.startswith("--wait") for w in words)


@pytest.mark.parametrize(
    "sections", [{}, {"slurm": {"chain": 2}}, {"sweep": {"train.seed": [1, 2]}}], ids=["job", "chain", "sweep"]
)
def test_every_script_forgets_the_environment_of_an_outer_job_before_it_asks_slurm(
    tmp_path: Path, sections: dict[str, Any]
) -> None:
    made = bundle(tmp_path, "slurm", evaluate={"data": "/data/held-out.json"}, **sections)
    assert len(made.files) == 2
    for text in made.files.values():
        first = min(text.index(f"\n{words}") for words in ("srun ", "  srun ") if f"\n{words}" in text)
        assert text.startswith("#!/bin/bash -p\n") and 0 < text.index('"${!SLURM_@}"') < first
        assert "umask" not in text.partition("QWEN_JOB_NODE_END")[0]
