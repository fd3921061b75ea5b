"""`make gpu-day` rehearsed on a CPU with tiny shapes: every process that a GPU will run is run here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_day import __main__ as command
from benchmarks.gpu_day import peaks, product, tasks, wheels
from benchmarks.gpu_day.day import ROOT, Results
from benchmarks.gpu_day.variants import variants
from qwen_job.plan.estimate.memory import Constants, estimate_memory
from qwen_job.plan.search.choice import layout_of

pytestmark = [pytest.mark.train, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(wheels.ACTIVE, str(time.monotonic()))  # whatever was packed for a GPU


def rehearse(folder: Path, *names: str) -> dict[str, Any]:
    """Run these tasks of a day; returns their figures."""
    home = folder / "home"
    words = ["--tiny", "--out", str(folder / "out"), "--home", str(home), "--only", ",".join(names)]
    code = command.main(words)
    found: dict[str, Any] = json.loads((folder / "out" / "results.json").read_text())["tasks"]
    assert code == 0, [task["reason"] for task in found.values()]
    assert {name: task["state"] for name, task in found.items()} == dict.fromkeys(names, "done")
    return {name: task["figures"] for name, task in found.items()}


def test_a_run_of_the_plan_is_timed_profiled_saved_and_started_again(tmp_path: Path) -> None:
    found = rehearse(tmp_path, "default", "restart", "liger")
    ours = found["default"]
    assert len(ours["step_seconds"]) >= 8 and ours["tokens_per_second"] > 0
    assert ours["planned_bytes"] > 0 and ours["planned_step_seconds"] > 0
    assert [save["step"] for save in ours["saves"]] == [4, 8] and ours["saves"][0]["bytes"] > 50e6
    assert ours["profile"]["cpu_ms"] > 0
    assert found["restart"]["resumed_from"] == 8 and found["restart"]["first_step_after"] > 0
    assert found["liger"]["tokens_per_second"] > 0
    table = (tmp_path / "out" / "tables.md").read_text()
    assert "| ours, as the plan chooses | 2 |" in table and "Ours over stock Trainer + Liger" in table


def test_constants_are_fitted_to_every_second_peak_and_judged_on_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    true = Constants(activation_factor=1.1, context_bytes=1_200_000_000, fragmentation=0.02)
    sizes = product.full_sizes("NVIDIA H200", 139.7, 9.0)
    rows = {}
    for name, changes in peaks.settings(sizes).items():
        plan = product.plan_for(sizes, tmp_path, "fit", **changes)
        assert plan.question is not None
        estimate = estimate_memory(layout_of(plan.question, plan.choice), constants=true)
        rows[name] = {"allocated": estimate.moments[estimate.peak], "device": estimate.gpu_bytes, "graphs": 0}
    rows["1.8B, 8 x 2048"] = {"error": "OutOfMemoryError"}
    tested = (len(rows) - 1) // 2
    fitted = len(rows) - 1 - tested
    machine = {"gpu": "NVIDIA H200", "memory_gib": 139.7, "capability": 9.0}
    results = {"machine": machine, "tasks": {"peaks": {"figures": rows}}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert command.main(["--fit", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    constants = "activation_factor 1.1, context_bytes 1,200,000,000, fragmentation 0.02"
    assert f"{constants}: fitted to {fitted} rows" in printed
    assert f"fitted, device: median error of {tested} test rows 0.0%" in printed
    with pytest.raises(SystemExit, match="does not exist"):
        command.main(["--fit", "--out", str(tmp_path / "none")])


def test_every_variant_and_side_is_a_job_that_can_be_planned(tmp_path: Path) -> None:
    sizes = product.full_sizes("NVIDIA H200", 139.7, 9.0)
    planned = {name: product.plan_for(sizes, tmp_path, "v", **row.changes) for name, row in variants(sizes).items()}
    assert {name for name, plan in planned.items() if plan.choice.zero_stage == 3} == {"ZeRO-3", "ZeRO-3, compiled"}
    place = tasks.Place(tmp_path, tmp_path, sizes, Results(tmp_path / "results.json", {}))
    sides = {task.name for task in tasks.all_tasks(place)}
    assert {"default", "eager", "compiled", "liger", "reference", "qwen3", "qwen3.5"} <= sides
    assert product.plan_for(sizes, tmp_path, "hybrid", model="qwen3.5-2b").memory is not None


def test_outcomes_are_read_while_tests_run_side_by_side_or_one_after_the_other() -> None:
    printed = """
[gw1] [  4%] PASSED tests/gpu/test_kernels.py::test_varlen[dtype0-8]
tests/gpu/test_training.py::test_it_trains[bf16-zero3]
[gw0] [  8%] FAILED tests/gpu/test_training.py::test_it_trains[bf16-zero3]
tests/gpu/test_kernels.py::test_liger SKIPPED (could not import 'liger_kernel') [ 50%]
tests/gpu/test_kernels.py::test_chunked PASSED                           [ 54%]
tests/gpu/test_kernels.py::test_that_still_runs
"""
    assert tasks.cases(printed) == {
        "test_kernels.py::test_varlen[dtype0-8]": "passed",
        "test_training.py::test_it_trains[bf16-zero3]": "failed",
        "test_kernels.py::test_liger": "skipped",
        "test_kernels.py::test_chunked": "passed",
    }


def test_a_worker_measures_peaks_variants_kernels_and_ceilings(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.gpu_day.worker", "machine", "peaks", "variants", "kernels"]
    words += ["--sizes", json.dumps(product.TINY._asdict()), "--home", str(tmp_path)]
    subprocess.run(words, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert found["machine"]["copy"]["gb_per_second"] > 0
    assert all(row["planned"] > 0 and row["loss"] > 5 for row in found["peaks"].values())
    assert [row["graphs"] > 0 for row in found["peaks"].values()] == [True, False]
    base, *others, missing = found["variants"].values()
    assert len(others) == 3 and len(base["losses"]) == 2
    assert all(row["losses"] == pytest.approx(base["losses"], abs=1e-3) for row in others)
    assert all(row["copied_weights"] == 0 for row in others), "ZeRO-2 holds q, k and v side by side"
    assert missing["error"].startswith("ModuleNotFoundError: No module named 'flash_attn_interface'")
    assert all(row.get("error", 0) == pytest.approx(0, abs=1e-5) for row in found["kernels"].values())
