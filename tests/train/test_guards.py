"""Messages that end a run say what to do next."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path

import pytest

from qwen_job.errors import OutOfMemory, Retryable
from qwen_job.train import __main__ as main
from qwen_job.train.config import parse_config
from qwen_job.train.guards import LossGuard, Suspect, diverged_message, oom_message
from qwen_job.train.launch import exit_code
from qwen_job.train.signals import StopWish
from qwen_job.train.watchdog import Standing, hang_message
from tests.train import tiny


def test_a_loss_that_is_no_number_is_refused_at_once() -> None:
    assert "nan" in (LossGuard(None).judge(math.nan) or "")
    assert "inf" in (LossGuard(None).judge(math.inf) or "")


def test_a_jump_is_refused_once_the_usual_loss_is_known() -> None:
    guard = LossGuard(3.0)
    assert guard.judge(10.0) is None  # the first steps may do as they like
    for _ in range(30):
        assert guard.judge(2.0) is None
    assert "more than 3 times" in (guard.judge(9.0) or "")
    assert LossGuard(None).judge(1e9) is None


def test_divergence_names_step_rank_rows_and_the_last_good_checkpoint() -> None:
    text = diverged_message(7, "the loss is nan", [Suspect(1, [4], ["data.json:9"])], 5)
    assert "step 7" in text and "rank 1, rows 4 (data.json:9)" in text and "step-5" in text


def test_out_of_memory_puts_plan_and_measurement_side_by_side_with_three_ways_out() -> None:
    values, deepspeed = tiny.settings(
        Path("/run"), training__per_device_train_batch_size=4, plan__memory_bytes_per_gpu=30 * 2**30
    )
    config = parse_config(values, "train.yaml")
    text = oom_message(config, "CUDA out of memory", 79 * 2**30, 2)
    assert "planned 30.0 GiB, peak before the failure 79.0 GiB" in text
    assert "per_device_train_batch_size: 2 with gradient_accumulation_steps: 4" in text
    assert text.count(";") == 4 and "gradient_checkpointing: true" in text and "ZeRO stage 3" in text
    caught = main._out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate"), config, deepspeed)
    assert isinstance(caught, OutOfMemory)
    assert main._out_of_memory(RuntimeError("something else"), config, deepspeed) is None


def test_a_lost_partner_is_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "_MANNERS_SECONDS", 0)
    assert isinstance(main._lost_peer(RuntimeError("gloo: Connection closed by peer")), Retryable)
    assert main._lost_peer(RuntimeError("shape mismatch")) is None


@pytest.mark.parametrize(
    ("failures", "code"),
    [
        ([(1.0, 7), (0.5, 128)], 7),
        ([(1.0, -9), (0.5, -15)], 137),
        ([(2.0, 160), (1.0, 160)], 160),
        ([(1.0, 5), (2.0, 7)], 5),
        ([(1.0, 128)], 128),
        ([(1.0, -9), (1.0, 161)], 161),
        ([(1.0, -6)], 134),
    ],
)
def test_the_first_rank_with_a_reason_decides_the_exit_code(failures: list[tuple[float, int]], code: int) -> None:
    assert exit_code(failures) == code


def test_the_silent_rank_is_named() -> None:
    now = time.time()
    standings = [Standing(0, "n0", 5, "fetching", now), Standing(1, "n1", 4, "computing", now - 100)]
    text = hang_message(0, 60, standings, 3, 11)
    assert "no sign of life from rank 1 on n1 (step 4, computing)" in text
    assert "never heard of ranks 2" in text


def test_the_slow_rank_is_named() -> None:
    now = time.time()
    standings = [Standing(0, "n0", 5, "fetching", now), Standing(1, "n1", 4, "computing", now)]
    assert "behind the others: rank 1 on n1" in hang_message(0, 60, standings, 2, 11)


def test_a_wish_is_heard_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    wish = StopWish()
    wish._note(signal.SIGUSR1, None)
    wish._note(signal.SIGTERM, None)
    assert wish.heard() and wish.reason == "signal SIGUSR1"
    monkeypatch.setenv("SLURM_JOB_START_TIME", str(int(time.time()) - 100))
    assert not StopWish(200, 50).heard(step_seconds=10)
    assert StopWish(200, 95).heard(step_seconds=10)
