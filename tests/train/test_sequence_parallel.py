"""Rows that ranks share give what one process gives without packing or sharing; runs with them resume.

Three minutes of one core: two and four processes that try every way once, in under two; and five runs of one folder.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen_job.facts.hardware import load_gpu
from qwen_job.facts.model_shapes import model_shape_from_config
from qwen_job.plan.estimate.activations import activation_bytes, loss_bytes
from qwen_job.plan.estimate.layout import Layout
from tests.support.tiny_models import TINY
from tests.train import tiny

pytestmark = [pytest.mark.train, pytest.mark.slow]

torch = pytest.importorskip("torch")
from tests.train.sequence_worker import HELD, STEPS, WAYS, Alone, Held, Way  # noqa: E402

EXACT = 2e-6


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[Any, Any]]:
    """Return what every way, and the reference, came to, by number of ranks."""
    found = {}
    for ranks in WAYS:
        output: Path = tmp_path_factory.mktemp("sequence") / "results.pt"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        command += ["-m", "tests.train.sequence_worker", str(output)]
        done = subprocess.run(command, env=tiny.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[ranks] = torch.load(output)
    return found


@pytest.mark.parametrize(("ranks", "way"), [(ranks, way) for ranks, ways in WAYS.items() for way in ways], ids=str)
def test_plain_sgd_gives_what_one_process_gives(results: dict[int, dict[Any, Any]], ranks: int, way: Way) -> None:
    ours, alone = results[ranks][tuple(way)], results[ranks][tuple(Alone.of(way))]
    assert ours["losses"] == pytest.approx(alone["losses"], rel=EXACT)
    assert ours["norms"] == pytest.approx(alone["norms"], rel=EXACT)
    if not way.broken:  # shares of the whole step's tokens, a row that is left out included
        assert ours["balances"] == pytest.approx(alone["balances"], rel=EXACT)
    assert ours["held_out"] == pytest.approx(alone["held_out"], rel=EXACT)
    torch.testing.assert_close(ours["weights"], alone["weights"], rtol=0, atol=EXACT)


def test_the_steps_are_long_enough_to_show_a_wrong_factor(results: dict[int, dict[Any, Any]]) -> None:
    alone, broken = (results[2][tuple(Alone.of(Way(broken=broken)))] for broken in (False, True))
    assert alone["losses"][0] - alone["losses"][-1] > 0.1
    assert abs(alone["losses"][-1] - broken["losses"][-1]) > 0.1


@pytest.mark.parametrize("way", [way for way in WAYS[2] if way.broken], ids=str)
def test_a_row_with_a_broken_slice_is_left_out_once(results: dict[int, dict[Any, Any]], way: Way) -> None:
    assert results[2][tuple(way)]["skipped"] == STEPS


@pytest.mark.parametrize(("ranks", "held"), [(ranks, one) for ranks, every in HELD.items() for one in every], ids=str)
def test_the_peaks_are_within_5_percent_of_the_plan(results: dict[int, dict[Any, Any]], ranks: int, held: Held) -> None:
    layout = Layout(
        model_shape_from_config({**TINY[held.model], "num_key_value_heads": 2}, "tiny"),
        ranks,
        ranks,
        zero_stage=0,
        gpu=load_gpu("CPU"),
        precision="fp32",
        sequence_length=held.length,
        gradient_checkpointing=held.checkpointing,
        attention=held.attention,
        fused_loss="chunked",
        sequence_parallel_size=held.size,
        tiled_mlp=held.tiled,
    )
    planned, (forward, backward) = activation_bytes(layout), results[ranks][tuple(held)]
    in_backward = planned["saved"] + planned["working"]
    at_loss = planned["saved"] + planned["final norm"] + loss_bytes(layout)
    assert in_backward == pytest.approx(backward, rel=0.05)
    assert max(at_loss, in_backward) == pytest.approx(max(forward, backward), rel=0.05)


RUN: dict[str, Any] = {
    "data__eval_split": 0.2,
    "training__eval_steps": 4,
    "training__save_steps": 4,
    "training__save_total_limit": 9,
    "training__max_steps": 10,
    "training__load_best_model_at_end": True,
    "gradient_checkpointing": True,
    "fused_loss": "chunked",
}
LONG = {"activation_offloading": True, "tiled_mlp": True}  # numbers stay the same
SHARED = {**RUN, **LONG, "sequence_parallel_size": 2, "training__gradient_accumulation_steps": 4}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that share rows with ZeRO-3, one of which was killed after step 6: resumed from step 4."""
    train_yaml = tiny.write_run(tmp_path_factory.mktemp("shared") / "run", 3, **SHARED)
    process = tiny.start(train_yaml)
    tiny.wait_for_step(train_yaml.parent, 6, process, seconds=300)
    tiny.workers(process)[1].send_signal(signal.SIGKILL)
    assert process.wait(120) == 128 + signal.SIGKILL, process.communicate()[0]
    code, output = tiny.run(train_yaml)
    assert code == 0 and "resuming from step-4" in output and "sequence_parallel_size" not in output, output
    return train_yaml.parent


def again(killed: Path, name: str, ranks: int, **changes: Any) -> tuple[Path, str]:
    """Resume a copy of the run from step 4 on ``ranks``; returns its folder and what it printed."""
    folder = killed.parent / name
    shutil.copytree(killed, folder)
    (folder / "done.json").unlink()
    for step in (8, 10):
        shutil.rmtree(folder / "checkpoints" / f"step-{step}")
    values = {**SHARED, **changes, "world_size": ranks}
    code, output = tiny.run(tiny.write_run(folder, 3, **values), ranks)
    assert code == 0 and "resuming from step-4" in output, output
    return folder, output


def figures(folder: Path) -> list[list[float]]:
    """Return loss, gradient norm and tokens of the last six steps, and the last held-out loss."""
    steps = [[line[name] for name in ("loss", "grad_norm", "tokens")] for line in tiny.metrics(folder, "step")[-6:]]
    return [*steps, [tiny.metrics(folder, "eval")[-1]["loss"]]]


def test_a_killed_run_repeats_its_steps_bit_for_bit(killed: Path) -> None:
    steps = tiny.metrics(killed, "step")
    repeated = [line for line in steps if sum(other["step"] == line["step"] for other in steps) == 2]
    assert {line["step"] for line in repeated} >= {5, 6}
    for line in repeated:
        twin = next(other for other in reversed(steps) if other["step"] == line["step"])
        assert [line[name] for name in ("loss", "grad_norm")] == [twin[name] for name in ("loss", "grad_norm")]


def test_a_run_without_shared_rows_has_the_same_figures(killed: Path) -> None:
    folder = killed.parent / "plain"
    code, output = tiny.run(tiny.write_run(folder, 2, **RUN), 2)
    assert code == 0, output
    for ours, theirs in zip(figures(killed), figures(folder), strict=True):
        assert ours == pytest.approx(theirs, abs=2e-5)  # ten steps of Adam, which makes much of rounding
    first = [tiny.metrics(one, "step")[0] for one in (killed, folder)]
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], rel=EXACT)
    assert first[0]["grad_norm"] == pytest.approx(first[1]["grad_norm"], rel=EXACT)


@pytest.mark.parametrize(("ranks", "size"), [(2, 1), (1, 1)], ids=["same ranks", "one rank"])
def test_a_run_resumes_with_another_size_on_any_number_of_ranks(killed: Path, ranks: int, size: int) -> None:
    steps = 4 * size // ranks
    changes = {"sequence_parallel_size": size, "training__gradient_accumulation_steps": steps}
    folder, output = again(killed, f"on-{ranks}", ranks, **changes)
    assert f"train.sequence_parallel_size: 2 -> {size}: numbers may differ in their last digits" in output
    for ours, theirs in zip(figures(folder), figures(killed), strict=True):
        assert ours == pytest.approx(theirs, abs=2e-5)
    assert json.loads((folder / "done.json").read_text())["step"] == 10
