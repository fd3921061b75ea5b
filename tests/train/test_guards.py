"""Messages that end a run say what to do next."""

from __future__ import annotations

import errno
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen_job.errors import EnvironmentFault, JobError, OutOfMemory, Retryable, UsageError
from qwen_job.node.generations import Failure, describe, exit_code
from qwen_job.run.config import TrainConfig, parse_config
from qwen_job.run.signals import StopRequest, TimeLimit
from qwen_job.train import failures
from qwen_job.train.guards import LossGuard, Suspect, diverged_message
from qwen_job.train.oom_advice import advice, changes, oom_message, suggestions
from qwen_job.train.trackers import check_trackers
from qwen_job.train.watchdog import Standing, hang_message
from tests.train import tiny

MANY = 100_000


def test_a_loss_that_is_no_number_is_refused_at_once() -> None:
    assert "nan" in (LossGuard(None).judge(math.nan, 1) or "")
    assert "inf" in (LossGuard(None).judge(math.inf, 1) or "")


def test_a_jump_is_refused_once_the_usual_loss_is_known() -> None:
    guard = LossGuard(3.0)
    assert guard.judge(10.0, MANY) is None  # the first steps may do as they like
    for _ in range(30):
        assert guard.judge(2.0, MANY) is None
    assert "more than 3 times" in (guard.judge(9.0, MANY) or "")
    assert LossGuard(None).judge(1e9, MANY) is None


@pytest.mark.parametrize(("targets", "steps"), [(12, 22), (100, 3), (2000, 3), (70_000, 1)])
def test_a_jump_ends_a_run_when_one_row_cannot_be_its_cause(targets: int, steps: int) -> None:
    guard = LossGuard(10.0)
    for number in range(60):
        assert guard.judge(0.005 + 0.135 * (number % 7) / 6, targets) is None
    verdicts = [guard.judge(6.0, targets) for _ in range(steps)]
    assert verdicts[:-1] == [None] * (steps - 1) and "jumped to 6" in (verdicts[-1] or "")


def test_mislabelled_rows_of_short_answers_end_no_run() -> None:
    draw = random.Random(4)
    for share in (0.002, 0.02, 0.1):
        guard = LossGuard(10.0)
        # Steps of four rows of three tokens; a row with another's label costs 11 nats a token.
        for _ in range(4000):
            bad = sum(draw.random() < share for _ in range(4))
            assert guard.judge(0.005 + 0.1 * draw.random() + 11.0 * bad / 4, 12) is None


def test_a_jump_that_passes_neither_raises_the_usual_far_nor_is_forgotten() -> None:
    guard = LossGuard(10.0)
    for _ in range(50):
        guard.judge(0.1, 500)
    before = guard.usual
    assert guard.judge(1e6, 500) is None and guard.jumping == 1
    assert guard.judge(0.1, 500) is None and guard.jumping == 0
    assert before < guard.usual < 0.2


def test_divergence_names_step_rank_rows_and_the_last_good_checkpoint() -> None:
    text = diverged_message(7, "the loss is nan", [Suspect(1, [4], ["data.json:9"])], 5, 6)
    assert "step 7" in text and "rank 1, rows 4 (data.json:9)" in text and "step-5 is the last good one" in text
    assert "train.on_nan: skip skips such rows" in text and "loss_spike_factor" not in text
    assert "no step has shown that checkpoint step-6 is good" in diverged_message(7, "the loss is nan", [], 6, 6)


def test_a_jump_is_told_the_setting_that_lets_it_pass() -> None:
    guard = LossGuard(3.0)
    reason = [guard.judge(loss, MANY) for loss in [2.0] * 12 + [9.0]][-1]
    assert reason and "train.loss_spike_factor: null" in diverged_message(13, reason, [], 5, 12)
    assert "train.skip_rows: [3, 7]" in diverged_message(13, reason, [Suspect(0, [7, 3], ["a:1"])], 5, 12)


def test_out_of_memory_puts_plan_and_measurement_side_by_side_with_three_suggestions() -> None:
    values, deepspeed = tiny.settings(
        Path("/run"), training__per_device_train_batch_size=4, plan__memory_bytes_per_gpu=30 * 2**30
    )
    config = parse_config(values, "train.yaml")
    text = oom_message(config, deepspeed, "CUDA out of memory", 79 * 2**30, None)
    assert "planned 30.0 GiB, peak before the failure 79.0 GiB; each of these needs less: " in text
    assert "per_device_train_batch_size: 2 with gradient_accumulation_steps: 4; " in text
    assert text.count(";") == 4 and "per_device_train_batch_size: 1 with" in text and "checkpointing: true" in text
    caught = failures.out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate"), config, deepspeed)
    assert isinstance(caught, OutOfMemory)
    assert failures.out_of_memory(RuntimeError("something else"), config, deepspeed) is None


def big(**changes: object) -> tuple[TrainConfig, dict[str, object]]:
    """Return the settings of Qwen-1.8B on one GPU."""
    changes = {"model__name": "Qwen/Qwen-1_8B-Chat", "world_size": 1, "device": "cuda", "precision": "bf16", **changes}
    values, deepspeed = tiny.settings(Path("/run"), **changes)
    return parse_config(values, "train.yaml"), deepspeed


def test_only_settings_that_fit_by_the_plan_are_named_and_with_what_they_need() -> None:
    config, deepspeed = big(
        attention="varlen", fused_loss="chunked", data__max_length=2048, training__per_device_train_batch_size=16
    )
    capacity = 80 * 2**30
    ways = suggestions(config, deepspeed, 79 * 2**30, capacity)
    assert ways.fit and len(ways.settings) == 3
    assert ways.settings[0].startswith("per_device_train_batch_size: 8 with gradient_accumulation_steps: 4 (about ")
    for text in ways.settings:
        assert int(text.rpartition("about ")[2].split()[0]) * 2**30 <= capacity
    # 24 GiB do not hold 16 bytes for each of 1.84 billion parameters: only what moves them away helps.
    ways = suggestions(config, deepspeed, 23 * 2**30, 24 * 2**30)
    assert ways.settings and all("offload" in text for text in ways.settings)
    offloaded = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    config, _ = big(data__max_length=256, gradient_checkpointing=True, fused_loss="chunked")
    assert "more GPUs or a smaller model" in advice(suggestions(config, offloaded, 7 * 2**30, 8 * 2**30))
    assert not any("offload" in text for text, _ in changes(config, offloaded["zero_optimization"]))


def test_a_lost_partner_is_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "MANNERS_SECONDS", 0)
    assert isinstance(failures.lost_peer(RuntimeError("gloo: Connection closed by peer")), Retryable)
    assert failures.lost_peer(RuntimeError("shape mismatch")) is None


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
    assert "no contact yet with rank 2" in text


def test_the_slow_rank_is_named() -> None:
    now = time.time()
    standings = [Standing(0, "n0", 5, "fetching", now), Standing(1, "n1", 4, "computing", now)]
    assert "behind the others: rank 1 on n1" in hang_message(0, 60, standings, 2, 11)


def test_a_wish_is_heard_and_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stop_request = StopRequest()
    stop_request._note(signal.SIGUSR1, None)
    stop_request._note(signal.SIGTERM, None)
    assert stop_request.heard() and stop_request.reason == "signal SIGUSR1"
    monkeypatch.setenv("SLURM_JOB_START_TIME", str(int(time.time()) - 100))
    monkeypatch.setenv("QWEN_JOB_TIME_LIMIT_SECONDS", "200")
    assert not StopRequest(TimeLimit(tmp_path, 50)).heard(step_seconds=10)
    assert StopRequest(TimeLimit(tmp_path, 95)).heard(step_seconds=10)


def test_a_time_limit_that_was_extended_is_read_before_it_is_acted_upon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    start = int(time.time()) - 100
    monkeypatch.setenv("QWEN_JOB_STARTED", str(start))
    monkeypatch.setenv("QWEN_JOB_TIME_LIMIT_SECONDS", "110")
    limit, told = TimeLimit(tmp_path, 50), tmp_path / "launch" / "ends_at"
    told.parent.mkdir()
    told.write_text(f"{start + 9999} {start - 7}\n")  # of an earlier attempt
    assert limit.is_near()
    told.write_text(f"{start + 400} {start}\n")
    assert not limit.is_near(step_seconds=10)
    assert limit.is_near(step_seconds=300)
    monkeypatch.setenv("QWEN_JOB_TIME_LIMIT_SECONDS", "")
    assert not TimeLimit(tmp_path, 50).is_near(step_seconds=10_000)
    monkeypatch.setenv("QWEN_JOB_TIME_LIMIT_SECONDS", "soon")
    with pytest.raises(UsageError, match="QWEN_JOB_TIME_LIMIT_SECONDS"):
        TimeLimit(tmp_path, 50)


def test_storage_that_forbids_is_a_persons_to_correct() -> None:
    for code in (errno.EACCES, errno.EPERM, errno.ENOTDIR):
        known = failures.storage(OSError(code, os.strerror(code), "/runs/x"))
        assert isinstance(known, EnvironmentFault) and "/runs/x" in str(known) and "another output" in str(known)
    assert isinstance(failures.storage(OSError(errno.EROFS, "Read-only file system", "/runs/x")), Retryable)
    assert failures.storage(ConnectionResetError("peer")) is None


def test_a_checkpoint_of_another_model_names_the_output() -> None:
    values, _ = tiny.settings(Path("/runs/x"))
    config = parse_config(values, "train.yaml")
    known = failures.other_model(RuntimeError("size mismatch for model.embed_tokens.weight: copying a param"), config)
    assert isinstance(known, JobError) and "output: /runs/x has checkpoints of another model" in str(known)
    assert failures.other_model(RuntimeError("CUDA error"), config) is None


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_prepared() -> None:
    values, _ = tiny.settings(Path("/runs/x"), training__report_to=["tensorboard", "swanlab"])
    with pytest.raises(
        JobError, match=r"training\.report_to.*swanlab is not installed here: build the image with PACKAGES=swanlab"
    ):
        check_trackers(parse_config(values, "train.yaml"))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-signal.SIGKILL, "was killed by SIGKILL, often by the kernel"),
        (-signal.SIGSEGV, "was killed by SIGSEGV"),
        (-99, "was killed by signal 99"),
        (7, "ended with exit code 7"),
    ],
)
def test_how_a_rank_ended_is_described(code: int, words: str) -> None:
    assert words in describe(Failure(1, 4242, code, 0.0))
    assert "local rank 1, process 4242" in describe(Failure(1, 4242, code, 0.0))


AT_THE_END = """
import os, signal, sys
from qwen_job.node.relay import Relay
relay = Relay(1)
relay.retire()
for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP):
    os.kill(os.getpid(), number)
sys.exit(9)
"""

WATCH = """
import sys, time
from pathlib import Path
from qwen_job.train.trackers import check_trackers
from qwen_job.train.watchdog import Watchdog
dog = Watchdog(None, 0, 1, 0.3, Path(sys.argv[1]))
dog.moved(1, "computing")
if sys.argv[2] == "rest":
    dog.rest()
if sys.argv[2] == "loading":
    dog.loading()
time.sleep(1.5)
sys.exit(9)
"""


def test_a_late_signal_does_not_replace_the_exit_code() -> None:
    assert subprocess.run([sys.executable, "-c", AT_THE_END], check=False).returncode == 9


@pytest.mark.parametrize(("way", "code"), [("computing", 161), ("rest", 9), ("loading", 9)])
def test_the_watch_ends_with_training_and_is_patient_while_a_model_loads(tmp_path: Path, way: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", WATCH, str(tmp_path), way], capture_output=True, check=False)
    assert done.returncode == code, done.stderr


SUSPENDED = """
import sys, time
from pathlib import Path
from qwen_job.train.watchdog import Watchdog
Watchdog(None, 0, 1, 1.0, Path(sys.argv[1])).moved(1, "computing")
print("watched", flush=True)
sys.stdin.readline()
time.sleep(0.3)
sys.exit(9)
"""


def test_time_in_which_the_job_was_suspended_does_not_count(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SUSPENDED, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdin and job.stdout and job.stdout.readline()
        job.send_signal(signal.SIGSTOP)
        time.sleep(1.5)  # longer than the watchdog's patience
        job.send_signal(signal.SIGCONT)
        job.stdin.write("\n")
        job.stdin.flush()
        assert job.wait(30) == 9


def test_a_small_rise_is_no_explosion_where_little_is_left_to_learn() -> None:
    guard = LossGuard(10.0)
    for _ in range(30):
        assert guard.judge(0.01, MANY) is None
    assert guard.judge(0.9, MANY) is None and "jumped" in (guard.judge(2.0, MANY) or "")
