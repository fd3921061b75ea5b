"""`make gpu-day`: tasks under a deadline, results that another day resumes, a profile as a table. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_day import tables, trace, wheels
from benchmarks.gpu_day.day import LEAST_SECONDS, Failed, OutOfTime, Results, Task, code_id, run_day


class Clock:
    """A clock that only tasks move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def task(self, name: str, seconds: float, error: Exception | None = None, takes: float | None = None) -> Task:
        def work(_deadline: float) -> dict[str, Any]:
            self.now += seconds if takes is None else takes
            if error is not None:
                raise error
            return {"figure": name}

        return Task(name, seconds, work)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def results(folder: Path, gpu: str = "H200") -> Results:
    return Results(folder / "results.json", {"gpu": gpu})


def states(found: Results) -> dict[str, str]:
    return {name: task["state"] for name, task in found.tasks.items()}


def test_a_day_ends_in_time_and_leaves_out_what_no_longer_fits(tmp_path: Path, clock: Clock) -> None:
    found = results(tmp_path)
    run_day([clock.task("long", 80), clock.task("longer", 90), clock.task("short", 10)], found, 100, print, clock)
    assert states(found) == {"long": "done", "short": "done"}
    assert clock.now <= 100


def test_a_task_that_fails_or_runs_out_of_time_keeps_its_figures_and_the_rest_goes_ahead(
    tmp_path: Path, clock: Clock
) -> None:
    found = results(tmp_path)
    tasks = [
        clock.task("broken", 1, Failed("exit 1", {"half": 1})),
        clock.task("surprised", 1, ZeroDivisionError("by nothing")),
        clock.task("late", 1, OutOfTime({"rows": 2})),
        clock.task("last", 1),
    ]
    run_day(tasks, found, 100, print, clock)
    assert states(found) == {"broken": "failed", "surprised": "failed", "late": "partial", "last": "done"}
    assert found.tasks["broken"]["figures"] == {"half": 1} and found.tasks["late"]["figures"] == {"rows": 2}
    assert found.tasks["surprised"]["reason"] == "ZeroDivisionError: by nothing"


def test_a_task_is_cut_off_at_its_limit_or_at_the_end_of_the_day(tmp_path: Path, clock: Clock) -> None:
    told: list[float] = []

    def work(deadline: float) -> dict[str, Any]:
        told.append(deadline)
        clock.now += 10
        return {}

    run_day([Task("short", 1, work, limit=30), Task("long", 1, work)], results(tmp_path), 100, print, clock)
    assert told == [30 - LEAST_SECONDS, 100 - LEAST_SECONDS]


def test_another_day_continues_with_what_is_missing_and_tries_failures_last(tmp_path: Path, clock: Clock) -> None:
    first = results(tmp_path)
    run_day([clock.task("done", 5), clock.task("failed", 5, Failed("no"))], first, 100, print, clock)
    second = results(tmp_path)
    assert second.resume() == "resuming: done done, failed failed"
    order: list[str] = []
    tasks = [clock.task("done", 5), clock.task("failed", 5), clock.task("new", 5)]
    run_day(tasks, second, 100, lambda line: order.append(line.partition(":")[0]), clock)
    assert list(dict.fromkeys(order)) == ["new", "failed"]
    assert states(second) == {"done": "done", "failed": "done", "new": "done"}


def test_results_of_another_gpu_are_kept_but_not_resumed(tmp_path: Path, clock: Clock) -> None:
    run_day([clock.task("speed", 5)], results(tmp_path, "A100"), 100, print, clock)
    other = results(tmp_path, "H200")
    assert "is of another gpu: kept as results-" in str(other.resume())
    assert other.tasks == {}
    (kept,) = tmp_path.glob("results-*.json")
    assert json.loads(kept.read_text())["tasks"]["speed"]["figures"] == {"figure": "speed"}


def test_the_code_has_a_name_that_does_not_depend_on_git() -> None:
    assert code_id() == code_id() and len(code_id()) == 12


def test_wheels_for_another_python_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(wheels.ACTIVE, raising=False)
    assert wheels.activate(tmp_path) is None
    (tmp_path / "some-1.0-py3-none-any.whl").touch()
    (tmp_path / "python").write_text("2.7")
    assert "is for Python 2.7, and this is 3." in str(wheels.activate(tmp_path))


def event(name: str, start: float, length: float, category: str = "kernel") -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": start, "dur": length, "cat": category}


def test_a_profile_gives_kinds_gaps_and_what_the_cpu_did() -> None:
    events = [
        event("nvjet_hsh_128x256_gemm", 0, 1000),
        event("flash_fwd_kernel", 1000, 500),
        event("aten::item", 1490, 400, "cpu_op"),
        event("aten::copy_", 1500, 20, "cpu_op"),
        event("triton_poi_fused_add", 1900, 100),
        event("Memcpy DtoH", 1950, 10, "gpu_memcpy"),  # on another stream
        event("fused_adam_kernel", 2010, 90),
        {"ph": "M", "name": "process_name"},
    ]
    found = trace.summary(trace.from_events(events))
    assert found["gpu_ms"] == 2.1 and found["kernels"] == 5
    assert found["by_kind_ms"]["matrix products"] == 1.0 and found["by_kind_ms"]["optimizer"] == 0.09
    assert found["idle_ms"] == pytest.approx(0.41)
    assert found["long_gaps"] == 1
    assert found["gaps"] == [{"at_ms": 1.5, "ms": 0.4, "after": "flash_fwd_kernel", "cpu": "aten::item"}]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel", "attention"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32", "matrix products"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<LpNormFunctor>", "gradient norm, foreach"),
        ("triton_red_fused__to_copy_mean_mul_pow_rsqrt_3", "compiled (Triton)"),
        ("void at::native::vectorized_elementwise_kernel<4, MulFunctor>", "elementwise"),
        ("ncclDevKernel_AllReduce", "communication"),
        ("something_new", "other"),
    ],
)
def test_a_kernel_is_of_a_kind(name: str, kind: str) -> None:
    assert trace.kind_of(name) == kind


def done(**figures: Any) -> dict[str, Any]:
    return {"state": "done", "seconds": 1.0, "reason": "", "figures": figures}


def report(**tasks: dict[str, Any]) -> str:
    return tables.report({"gpu": "NVIDIA H200", "driver": "580", "commit": "abc", "code": "0" * 12}, tasks)


def test_the_tables_compare_ours_with_the_peer_of_the_same_day() -> None:
    ours = {"tokens_per_second": 60_000.0, "mfu": 0.5, "memory_bytes": 2**36, "planned_bytes": 2**36, "micro_batch": 8}
    text = report(default=done(**ours), liger=done(**{**ours, "tokens_per_second": 48_000.0}))
    assert "| ours, as the plan chooses | 8 | 60,000 | 99% | 50.0% | 64.0 GiB | 64.0 GiB |" in text
    assert "Ours over stock Trainer + Liger: 1.25 times." in text


def test_a_peak_shows_the_plan_beside_what_was_allocated_and_what_the_device_held() -> None:
    gib = 2**30
    row = {"allocated": 50 * gib, "planned": 51 * gib, "reserved": 52 * gib, "device": 53 * gib}
    text = report(peaks=done(**{"1.8B": {**row, "planned_device": 54 * gib}, "7B": {"skipped": "needs 140 GiB"}}))
    assert "| 1.8B | 50.0 GiB | 51.0 GiB | +2.0% | 52.0 GiB | 53.0 GiB | 54.0 GiB | +1.9% |" in text
    assert "| 7B | needs 140 GiB |" in text


def test_starts_tell_whether_layers_were_compiled_or_loaded() -> None:
    line = {"compiled": True, "seconds": 31.0, "graphs": 2, "found": 0, "reason": ""}
    warm = {"resumed_from": 28, "first_step_after": 12.0, "compile": {**line, "seconds": 4.0, "graphs": 0, "found": 2}}
    text = report(default=done(first_step_after=80.0, compile=line), restart=done(**warm))
    assert "nothing cached | compiled in 31.0 s | 80.0 s |" in text
    assert "caches warm (goal: 15 s) | loaded in 4.0 s | 12.0 s |" in text


def test_what_failed_or_is_unfinished_is_named_at_the_top() -> None:
    late: dict[str, Any] = {"state": "partial", "seconds": 9.0, "reason": "out of time", "figures": {}}
    assert "- peaks: partial: out of time" in report(peaks=late, tests=done(first="passed"))


def test_variants_tell_whether_they_compute_the_same() -> None:
    row = {"ms": 100.0, "spread_ms": 1.0, "first_step_seconds": 2.0, "losses": [1.0, 2.0]}
    row |= {"allocated": 2**30, "reserved": 2**31, "graphs": 1}
    other = {**row, "ms": 90.0, "losses": [1.0, 2.5]}
    text = report(variants=done(**{"the plan's choice": row, "same": row, "other": other, "bad": {"error": "boom"}}))
    assert "| same | 100.0 | +0.0 | 1.0 | 1.0 GiB | 2.0 GiB | 1 | 2.0 s | equal |" in text
    assert "| other | 90.0 | -10.0 | 1.0 | 1.0 GiB | 2.0 GiB | 1 | 2.0 s | within 5.0e-01 |" in text
    assert "| bad | boom |" in text


def test_failed_tests_are_named() -> None:
    text = report(tests=done(one="passed", two="failed"))
    assert "1 of 2 passed." in text and "- two: failed" in text
