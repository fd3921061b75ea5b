"""Packing, accumulation and the number of ranks change nothing about a step's gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.train import tiny

pytestmark = [pytest.mark.train, pytest.mark.slow]

WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "one big batch": (1, {"training__per_device_train_batch_size": 48, "data__packing": False}),
    "packed, accumulated, two ranks": (2, {"training__gradient_accumulation_steps": 12}),
    "packed, eager, chunked, checkpointed": (
        2,
        {
            "training__per_device_train_batch_size": 3,
            "training__gradient_accumulation_steps": 4,
            "attention": "eager",
            "fused_loss": "chunked",
            "gradient_checkpointing": True,
        },
    ),
}


def gradients(home: Path, name: str) -> dict[str, Any]:
    """Return the gradient of the first step, which sees every conversation once."""
    import torch

    ranks, changes = WAYS[name]
    folder = home / name.replace(" ", "-").replace(",", "")
    changes = {"world_size": ranks, "training__gradient_accumulation_steps": 1, **changes}
    train_yaml = tiny.write_run(folder, 2, **changes)
    code, output = tiny.run(train_yaml, ranks, change=f"gradients {folder}/gradients.pt")
    assert code == 0, output
    found: dict[str, Any] = torch.load(folder / "gradients.pt")
    return found


def test_every_way_of_batching_gives_the_same_gradient(tmp_path: Path) -> None:
    first, *others = [gradients(tmp_path, name) for name in WAYS]
    assert len(first) == 27
    for other in others:
        for name, expected in first.items():
            difference = (other[name] - expected).norm() / expected.norm()
            assert difference < 2e-6, (name, difference)


def test_a_row_that_gives_nan_is_left_out_and_counted(tmp_path: Path) -> None:
    train_yaml = tiny.write_run(tmp_path / "run", 3, guards__on_nan="skip")
    code, output = tiny.run(train_yaml, change="nan 3")
    assert code == 0, output
    skips = tiny.metrics(train_yaml.parent, "guard")
    assert [line["skipped"] for line in skips] == [1, 2]  # once in each of two epochs
    assert all(line["rows"] == [3] for line in skips)
    assert all(line["loss"] is not None for line in tiny.metrics(train_yaml.parent, "step"))


@pytest.mark.parametrize("stage", [2, 3])
def test_gradients_that_are_no_numbers_stop_the_run_and_leave_the_checkpoint(tmp_path: Path, stage: int) -> None:
    train_yaml = tiny.write_run(tmp_path / "run", stage)
    code, output = tiny.run(train_yaml, change="slopes 6")
    assert code == 1 and "exitcode  : 7" in output, output  # torchrun's own, and the worker's
    assert "step 6: the gradients are not finite on rank 0, rows" in output
    assert "checkpoint step-4 is the last good one" in output
    assert not (train_yaml.parent / "done.json").exists()


def test_a_step_without_gradients_is_left_out_and_counted(tmp_path: Path) -> None:
    train_yaml = tiny.write_run(tmp_path / "run", 2, guards__on_nan="skip", precision="bf16")
    code, output = tiny.run(train_yaml, change="slopes 6")
    assert code == 0 and "step 6: the gradients are not finite" in output and "skipped (1 so far)" in output, output
    assert [line["skipped"] for line in tiny.metrics(train_yaml.parent, "guard")] == [1, 1]  # a line for each rank


def test_skipping_ends_where_nothing_is_left_to_train(tmp_path: Path) -> None:
    train_yaml = tiny.write_run(tmp_path / "run", 2, guards__on_nan="skip", precision="bf16")
    code, output = tiny.run(train_yaml, change="slopes all")
    assert code == 1 and "step 3: the gradients are not finite, 3 steps in a row" in output, output


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_plain_optimizer_is_given_the_norm_of_what_it_steps_with(clip: float) -> None:
    import torch

    from qwen_job.train.gradients import measure_gradients

    model = torch.nn.Linear(3, 2)
    for place, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, place + 1.0)

    class Engine:
        module, optimizer = model, torch.optim.AdamW(model.parameters())
        _global_grad_norm: float | None = None

        def _take_model_step(self) -> None:
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            self.optimizer.step()

    engine = Engine()
    measure_gradients(engine)
    engine._take_model_step()
    assert engine._global_grad_norm == pytest.approx((6 * 1 + 2 * 4) ** 0.5)
