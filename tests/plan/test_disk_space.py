"""What runs need on disk, all together, and what is said where it is not free."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_job.api import jobs
from qwen_job.api.jobs import disk_room, plan_job
from qwen_job.plan import Plan, make_plan
from qwen_job.plan.disk_space import DiskRoom, disk_needed
from qwen_job.text import GIB
from tests.plan.jobs import job_of

DATA = ("data.samples=1000000", "data.tokens_per_sample=300")
PREPARED = 4 * 300_000_000 + 40 * 1_000_000
RATES = "sweep.train.learning_rate=[1e-5,2e-5,3e-5]"


def needed(plan: Plan) -> int:
    runs = [(one.plan.job, one.plan.run) for one in plan.sweep] or [(plan.job, plan.run)]
    return disk_needed(plan.job.output, [(job, run.memory) for job, run in runs if run])


def disk_warnings(plan: Plan) -> list[str]:
    return [one for one in plan.warnings if one.startswith("output: ")]


def test_runs_of_a_sweep_share_their_prepared_data(tmp_path: Path) -> None:
    one, swept = (needed(make_plan(job_of(tmp_path, *DATA, *more))) for more in ((), (RATES,)))
    assert swept == 3 * (one - PREPARED) + PREPARED


def test_runs_with_other_rows_prepare_their_own(tmp_path: Path) -> None:
    plans = [
        make_plan(job_of(tmp_path, *DATA, more))
        for more in ("train.model_max_length=512", "sweep.train.model_max_length=[512,1024]")
    ]
    assert needed(plans[1]) == 2 * needed(plans[0])


@pytest.mark.parametrize(("cache", "counted"), [("/elsewhere", 0), ("/shared/runs/demo/cache", PREPARED)])
def test_data_prepared_elsewhere_takes_no_space_of_the_output(tmp_path: Path, cache: str, counted: int) -> None:
    alone = needed(make_plan(job_of(tmp_path)))
    assert needed(make_plan(job_of(tmp_path, *DATA, f"data.cache_dir={cache}"))) == alone + counted


def test_the_original_export_counts_twice_in_the_warning_and_on_the_nodes(tmp_path: Path) -> None:
    hybrid = ("model=Qwen/Qwen3.5-2B", "cluster.memory_gib=500", *DATA)
    text, original = (job_of(tmp_path, *hybrid, f"train.export={export}") for export in ("text", "original"))
    plans = make_plan(text), make_plan(original)
    assert needed(plans[1]) - needed(plans[0]) == 2 * 1_881_825_088
    both = [plan.memory.disk_bytes for plan in plans if plan.memory]
    assert both[1] - both[0] == 2 * 1_881_825_088
    room = DiskRoom(needed(plans[0]), "/", "/shared/runs")
    assert not disk_warnings(make_plan(text, disk=room)) and len(disk_warnings(make_plan(original, disk=room))) == 1


def test_a_sweep_that_does_not_fit_is_said_once_and_for_all_runs(tmp_path: Path) -> None:
    job = job_of(tmp_path, RATES, *DATA)
    size = needed(make_plan(job))
    (found,) = disk_warnings(make_plan(job, disk=DiskRoom(size - 1, "/shared", "/shared/runs")))
    assert f"the 3 runs of the sweep need about {size / GIB:.0f} GiB on disk" in found
    assert found.startswith("output: ") and "free on the file system that this machine has at /shared; free" in found
    assert not disk_warnings(make_plan(job, disk=DiskRoom(size, "/shared", "/shared/runs")))


@pytest.fixture
def nearly_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(folder: Path) -> object:
        assert folder.is_dir()
        return type("Usage", (), {"free": 5 * GIB})

    monkeypatch.setattr(jobs.shutil, "disk_usage", usage)


@pytest.mark.usefixtures("nearly_full")
@pytest.mark.parametrize("samples", [(), ("data.samples=640",)])
def test_an_output_without_a_parent_is_judged_by_the_nearest_folder(tmp_path: Path, samples: tuple[str, ...]) -> None:
    row = '[{"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]}]'
    (tmp_path / "chats.json").write_text(row, "utf-8")
    sets = (f"data.train={tmp_path}/chats.json", *samples)
    (missing,) = disk_warnings(plan_job(job_of(tmp_path, f"output={tmp_path}/new/runs/demo", *sets)))
    assert f"({tmp_path}/new/runs does not exist here, so {tmp_path} was looked at; " in missing
    assert "but 5 GiB are free on the file system that this machine has at /" in missing
    (there,) = disk_warnings(plan_job(job_of(tmp_path, f"output={tmp_path}/demo", *sets)))
    assert "does not exist" not in there


@pytest.mark.usefixtures("nearly_full")
def test_a_machine_without_the_data_is_not_judged(tmp_path: Path) -> None:
    sets = (f"output={tmp_path}/demo", f"data.train={tmp_path}/none.json")
    assert not disk_warnings(plan_job(job_of(tmp_path, *sets)))
    assert not disk_warnings(plan_job(job_of(tmp_path, *sets, *DATA)))


@pytest.mark.usefixtures("nearly_full")
def test_what_earlier_attempts_of_a_sweep_use_counts_as_free(tmp_path: Path) -> None:
    job = job_of(tmp_path, f"output={tmp_path}/demo", RATES)
    for folder in (Path(job.output, "prepared"), Path(job.points[1].job.output, "checkpoints", "step-1")):
        folder.mkdir(parents=True)
        (folder / "x").write_bytes(b"x" * 1000)
    room = disk_room(job)
    assert room is not None and room.free_bytes == 5 * GIB + 2000 and room.folder == str(tmp_path)
    assert Path(room.mount).is_mount()
