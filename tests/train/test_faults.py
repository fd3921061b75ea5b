"""What happens to real runs: signals, kill -9, frozen ranks, full disks, a loss that explodes."""

from __future__ import annotations

import functools
import json
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from qwen_job.run import states
from tests.train import tiny

pytestmark = [pytest.mark.train, pytest.mark.slow]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose runs share data, model and prepared rows."""
    return tmp_path_factory.mktemp("faults")


@functools.cache
def undisturbed(home: Path, stage: int) -> bytes:
    """Return the weights of a run to which nothing happens."""
    calm = tiny.write_run(home / f"calm{stage}", stage)
    code, output = tiny.run(calm)
    assert code == 0, output
    return weights(calm.parent)


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def spoil_checkpoints(folder: Path) -> None:
    """Damage every large file of the checkpoints on disk, without a change of its size."""
    for path in (folder / "checkpoints").rglob("*.pt"):
        path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_killed_and_resumed_weights_are_those_of_an_undisturbed_run(home: Path, stage: int) -> None:
    expected = undisturbed(home, stage)
    rough = tiny.write_run(home / f"rough{stage}", stage)
    process = tiny.start(rough)
    tiny.wait_for_step(rough.parent, 6, process)
    tiny.workers(process)[1].send_signal(signal.SIGKILL)
    assert process.wait(60) == 128 + signal.SIGKILL, process.communicate()[0]
    code, output = tiny.run(rough)
    assert code == 0, output
    assert "resuming from step-" in output
    assert weights(rough.parent) == expected
    starts = tiny.metrics(rough.parent, "start")
    assert [line["attempt"] for line in starts] == [0, 1] and starts[1]["resumed_from"] in (4, 8)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_restart_resumes_from_memory_and_reads_no_checkpoint(home: Path, stage: int) -> None:
    """Two short runs for each stage, one of them killed: 15 s."""
    expected = undisturbed(home, stage)
    rough = tiny.write_run(home / f"memory{stage}", stage, training__memory_save_steps=1)
    process = tiny.start(rough)
    tiny.wait_for_step(rough.parent, 7, process)
    tiny.workers(process)[1].send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL and "stays in memory for the next attempt" in output, output
    spoil_checkpoints(rough.parent)
    # The fault decides the interval from now on.
    tiny.write_run(home / f"memory{stage}", stage, training__memory_save_steps="auto")
    code, output = tiny.run(rough)
    assert code == 0 and "skipped" not in output, output
    assert re.search(r"every \d+ steps or so: Young's interval for a fault every \d+ s, as 1 so far suggest", output)
    assert weights(rough.parent) == expected
    start, last = tiny.metrics(rough.parent, "start")[-1], tiny.metrics(rough.parent, "memory")[-1]
    # No state is kept while step 4 is written to disk.
    assert start["from_memory"] and start["resumed_from"] >= 4
    assert 0 < last["pause_seconds"] <= last["seconds"] and last["bytes"] > 0
    assert not states.homes_here(rough.parent)


def test_a_lost_node_s_state_comes_from_the_neighbour_s_memory(home: Path) -> None:
    """Two launchers, each on a host by its own name; nothing is saved on disk before the end: 15 s."""
    expected = undisturbed(home, 2)
    rough = tiny.write_run(home / "lost", 2, training__memory_save_steps=1, training__save_steps=100)
    first, second = tiny.start_nodes(rough)
    tiny.wait_for_step(rough.parent, 7, first)
    tiny.workers(second)[0].send_signal(signal.SIGKILL)
    assert second.wait(60) == 128 + signal.SIGKILL and first.wait(60) >= 128
    prefix = states.home_of(rough.parent, 1).name[:21]
    left, lost = (states.SHARED_MEMORY / f"{prefix}-host{node}.{node}" for node in (0, 1))
    shutil.rmtree(lost)
    steps = [{state.step for state in states.states([left]) if state.node == node} for node in (0, 1)]
    outputs = [process.communicate(timeout=120)[0] for process in tiny.start_nodes(rough)]
    assert "memory: the state of node 1 comes from the copy on node 0" in outputs[0], outputs
    assert weights(rough.parent) == expected
    # While a copy is on its way, no other state is kept: on a busy machine, not each step has one.
    assert tiny.metrics(rough.parent, "start")[-1]["resumed_from"] == max(steps[0] & steps[1]) > 0


def test_a_state_kept_in_the_background_is_the_state_at_its_step(home: Path, tmp_path: Path) -> None:
    """As on GPUs, where a copy is written while training continues."""
    rough = tiny.write_run(home / "aside", 2, training__memory_save_steps=1)
    code, output = tiny.run(rough, change="background", QWEN_JOB_MEMORY=str(tmp_path))
    assert code == 0 and weights(rough.parent) == undisturbed(home, 2), output
    newest = states.states([tmp_path])[0]
    assert newest.step >= 9 and states.damage(newest) == ""
    # Resume from it, as if nothing later had been saved.
    shutil.rmtree(rough.parent / "checkpoints")
    (rough.parent / "done.json").unlink()
    code, output = tiny.run(rough, change="background", QWEN_JOB_MEMORY=str(tmp_path))
    assert code == 0 and f"resuming from step-{newest.step}: verified in memory; on disk: none" in output, output
    assert weights(rough.parent) == undisturbed(home, 2)


def test_shared_memory_that_fills_up_ends_no_run(home: Path, tmp_path: Path) -> None:
    full = tiny.write_run(home / "fills", 2, training__memory_save_steps=1)
    code, output = tiny.run(full, change="full", QWEN_JOB_MEMORY=str(tmp_path))
    assert code == 0 and weights(full.parent) == undisturbed(home, 2), output
    assert output.count("could not be kept in memory (rank 1: [Errno 28] No space left on device)") == 1, output
    assert states.states([tmp_path]) == []
    assert [line["step"] for line in tiny.metrics(full.parent, "save")] == [4, 8, 12]


def test_a_checkpoint_written_in_the_background_is_the_state_at_its_step(home: Path) -> None:
    calm = tiny.write_run(home / "quiet", 2, training__save_steps=1, training__save_total_limit=20)
    code, output = tiny.run(calm, change="background")
    assert code == 0, output
    folder = calm.parent / "checkpoints"
    saves = tiny.metrics(calm.parent, "save")
    assert [line["step"] for line in saves] == list(range(1, 13))
    assert all(line["pause_seconds"] <= line["seconds"] for line in saves)
    # Go on from the middle one, as if the later ones had never been.
    first = (calm.parent / "model" / "model.safetensors").read_bytes()
    for step in range(6, 13):
        shutil.rmtree(folder / f"step-{step}")
    (calm.parent / "done.json").unlink()
    code, output = tiny.run(calm, change="background")
    assert code == 0 and "resuming from step-5" in output, output
    assert (calm.parent / "model" / "model.safetensors").read_bytes() == first


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_saves_at_a_step_boundary_and_the_run_goes_on(home: Path, number: signal.Signals) -> None:
    train_yaml = tiny.write_run(
        home / f"signal{number.value}", training__num_train_epochs=200.0, training__save_steps=5000
    )
    folder = train_yaml.parent
    process = tiny.start(train_yaml)
    tiny.wait_for_step(folder, 3, process)
    process.send_signal(number)
    time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 160, output
    stopped = tiny.metrics(folder, "stop")[-1]
    # The launcher passes either on as USR1, with its name.
    assert stopped["exit_code"] == 160 and stopped["reason"].startswith(f"signal {number.name}")
    last = tiny.metrics(folder, "step")[-1]["step"]
    assert json.loads((folder / "checkpoints" / f"step-{last}" / "manifest.json").read_text())["step"] == last
    assert json.loads((folder / "heartbeat").read_text())["state"] == "stopped"

    # A second later life: less to do, and it starts where the first one ended.
    settings = train_yaml.read_text().replace("num_train_epochs: 200.0", f"max_steps: {last + 2}")
    train_yaml.write_text(settings)
    code, output = tiny.run(train_yaml)
    assert code == 0, output
    assert [line["step"] for line in tiny.metrics(folder, "step")][-2:] == [last + 1, last + 2]


def test_the_time_limit_counts_from_the_allocation(home: Path) -> None:
    train_yaml = tiny.write_run(home / "limit", training__num_train_epochs=5000.0, stop__grace_seconds=60)
    limit = {"QWEN_JOB_TIME_LIMIT_SECONDS": "3600"}
    # The allocation began so long ago that saving must begin before there is time for a step, ...
    started = time.monotonic()
    code, output = tiny.run(train_yaml, **limit, QWEN_JOB_STARTED=f"{time.time() - 3550:.0f}")
    assert code == 160 and "the time limit is near" in output and "nothing new to save" in output, output
    assert not list(train_yaml.parent.glob("checkpoints/step-*"))
    assert output.count("nothing new to save") == 1 and "SIGTERM" not in output, output
    # ... and so that there is time for some, on a slow machine too.
    left = 15 + 2 * (time.monotonic() - started)
    code, output = tiny.run(train_yaml, **limit, QWEN_JOB_STARTED=f"{time.time() - 3540 + left:.0f}")
    assert code == 160 and "the time limit is near: saved at step" in output, output
    last = tiny.metrics(train_yaml.parent, "step")[-1]["step"]
    assert (train_yaml.parent / "checkpoints" / f"step-{last}" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"training__learning_rate": "fast"}, 3, "training.learning_rate"),  # before the ranks meet
        ({"data__train": [{"path": "/nowhere/data.json", "weight": 1.0}]}, 4, "/nowhere/data.json"),  # on rank 0 alone
        ({"training__lr_scheduler_type": "zigzag"}, 3, "zigzag"),  # on each
    ],
)
def test_what_is_wrong_for_all_ranks_is_said_once(home: Path, changes: dict[str, Any], code: int, words: str) -> None:
    found, output = tiny.run(tiny.write_run(home / f"wrong{len(words)}", **changes))
    assert found == code and output.count(words) == 1, output


def test_a_frozen_rank_is_named_within_the_limit(home: Path) -> None:
    changes = {"training__num_train_epochs": 200.0, "guards__hang_seconds": 4, "sequence_parallel_size": 2}
    train_yaml = tiny.write_run(home / "frozen", **changes)
    process = tiny.start(train_yaml)
    tiny.wait_for_step(train_yaml.parent, 2, process)
    frozen = tiny.workers(process)[1]
    frozen.send_signal(signal.SIGSTOP)
    try:
        tiny.workers(process)[0].wait(60)
        time.sleep(1)  # the launcher looks ten times a second
    finally:
        frozen.kill()  # the agent would wait half a minute for it
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 161, output
    assert "rank 0 of group 0: no progress for 4 s; no sign of life from rank 1 of group 0 on " in output
    assert "trainer.py" in (train_yaml.parent / "logs" / "stacks-rank-0.txt").read_text()


def test_a_disk_that_is_full_keeps_the_previous_checkpoint(home: Path) -> None:
    train_yaml = tiny.write_run(home / "full", training__num_train_epochs=200.0, training__save_steps=3)
    folder = train_yaml.parent
    process = tiny.start(train_yaml)
    tiny.wait_for_step(folder, 4, process)
    for worker in tiny.workers(process):
        worker.rlimit(psutil.RLIMIT_FSIZE, (100_000, 100_000))
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 5, output
    assert "could not be written" in output and "earlier checkpoints are intact" in output
    kept = sorted((folder / "checkpoints").glob("step-*/manifest.json"))
    assert kept
    assert not list((folder / "checkpoints").glob(".step-*"))


def test_an_exploding_loss_stops_with_step_rank_and_rows(home: Path) -> None:
    train_yaml = tiny.write_run(
        home / "nan", training__learning_rate=1e30, training__max_grad_norm=0.0, training__warmup_ratio=0.0
    )
    code, output = tiny.run(train_yaml)
    assert code == 7, output
    assert "the loss is nan" in output or "the loss is inf" in output
    assert "rank 0, rows" in output and "data.json:" in output and "Lower learning_rate" in output
    assert not (train_yaml.parent / "checkpoints").exists()


def test_weights_that_an_update_broke_are_not_called_good_nor_saved_again(home: Path) -> None:
    changes = {"training__learning_rate": 1e30, "training__max_grad_norm": 0.0, "training__warmup_ratio": 0.0}
    train_yaml = tiny.write_run(home / "broken", training__save_steps=1, guards__on_nan="skip", **changes)
    code, output = tiny.run(train_yaml)
    assert code == 7 and "no row had a finite loss, 3 steps in a row" in output, output
    assert "no step has shown that checkpoint step-1 is good" in output
    assert [path.name for path in (train_yaml.parent / "checkpoints").glob("step-*")] == ["step-1"]


def test_weights_that_are_no_numbers_are_not_saved(home: Path) -> None:
    train_yaml = tiny.write_run(home / "numbers", 0, training__save_steps=6)
    code, output = tiny.run(train_yaml, change="weights 6")
    assert code == 1 and "step 6: the weights are not finite after the update" in output, output
    assert not (train_yaml.parent / "checkpoints").exists()
    # A plain optimizer, without any of DeepSpeed's: gradients are measured there, too.
    assert all(line["grad_norm"] > 0 for line in tiny.metrics(train_yaml.parent, "step"))


def test_a_changed_learning_rate_holds_after_resuming_and_is_told(home: Path) -> None:
    train_yaml = tiny.write_run(home / "rate", training__warmup_ratio=0.0)
    code, output = tiny.run(train_yaml, change="stop 4")
    assert "saved at step 4" in output, output
    tiny.write_run(home / "rate", training__warmup_ratio=0.0, training__learning_rate=1e-6)
    code, output = tiny.run(train_yaml)
    assert code == 0, output
    assert "changed since step-4 was saved, and used from now on: training.learning_rate 0.005 -> 1e-06" in output
    rates = {line["step"]: line["learning_rate"] for line in tiny.metrics(train_yaml.parent, "step")}
    assert rates[4] > 1e-3 and 0 < rates[5] < rates[4] and max(rates[step] for step in range(5, 13)) <= 1e-6


def test_an_output_that_cannot_be_written_is_said_in_one_line(home: Path) -> None:
    (home / "a-file").write_text("")
    train_yaml = tiny.write_run(home / "nowhere", output_dir=str(home / "a-file" / "run"))
    started = time.monotonic()
    code, output = tiny.run(train_yaml)
    assert code == 5 and "a-file/run: Not a directory: correct it" in output and "Traceback" not in output, output
    # The other rank, which waits to meet the first, leaves at once and without words of its own.
    assert time.monotonic() - started < 25 and "SIGTERM" not in output, output


def test_running_out_of_memory_puts_plan_and_measurement_side_by_side_and_names_three_settings(home: Path) -> None:
    changes = {"training__per_device_train_batch_size": 2, "plan__memory_bytes_per_gpu": 30 * 2**30}
    train_yaml = tiny.write_run(home / "oom", sequence_parallel_size=2, **changes)
    code, output = tiny.run(train_yaml, change="oom 3")
    assert code == 1 and "exitcode  : 10" in output, output  # torchrun's own, and the worker's
    for text in (
        "out of memory on rank 1 of group 0 (CUDA out of memory.",
        "out of memory on rank 0 of group 0 (CUDA out of memory. Tried to allocate 4.00 GiB.); planned 30.0 GiB, "
        "peak before the failure",
        "each of these needs less: per_device_train_batch_size: 1 with gradient_accumulation_steps: 4; "
        "gradient_checkpointing: true; ZeRO stage 3 instead of 2",
    ):
        assert text in output
    stopped = tiny.metrics(train_yaml.parent, "stop")[-1]
    assert (stopped["step"], stopped["exit_code"]) == (2, 10) and "planned 30.0 GiB" in stopped["reason"]


def test_what_deepspeed_s_configuration_refuses_names_its_key(home: Path) -> None:
    train_yaml = tiny.write_run(home / "deepspeed", training__max_steps=1)
    file = train_yaml.with_name("deepspeed.json")
    given = json.loads(file.read_text())
    given["zero_optimization"]["overlapcomm"] = False
    file.write_text(json.dumps(given))
    code, output = tiny.run(train_yaml, processes=1)
    assert code == 3, output
    assert "overlapcomm" in output
    assert "Traceback" not in output
