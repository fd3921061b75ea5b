"""Held-out loss: the best checkpoint is kept and taken, and training stops where nothing gets better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.train import tiny

pytestmark = [pytest.mark.train, pytest.mark.slow]


def write_run(home: Path, stage: int, **changes: Any) -> Path:
    """Write a run that learns few rows by heart, and nothing else, and takes its best weights."""
    tiny.conversations(home / "data.json", 24)
    return tiny.write_run(
        home / "run",
        stage,
        data__eval_split=0.4,
        training__num_train_epochs=400.0,
        training__eval_steps=2,
        training__save_total_limit=1,
        training__load_best_model_at_end=True,
        **{"training__learning_rate": 0.05, **changes},
    )


def evaluations(folder: Path) -> tuple[dict[int, float], int]:
    """Return step -> held-out loss, and the step of the least."""
    held_out = {line["step"]: line["loss"] for line in tiny.metrics(folder, "eval")}
    return held_out, min(held_out, key=lambda step: held_out[step])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, str]]:
    """Return folder and output of runs that stop early, by the number of ranks that share a row: ZeRO-0 and ZeRO-3."""
    found = {}
    for size, stage in ((1, 0), (2, 3)):
        train_yaml = write_run(
            tmp_path_factory.mktemp("stopped"),
            stage,
            sequence_parallel_size=size,
            training__gradient_accumulation_steps=2 * size,
            training__max_steps=60,
            training__save_steps=6,
            training__early_stopping_patience=2,
            # Adam would make much of the last digits of small gradients.
            training__learning_rate=0.2,
            training__adam_epsilon=0.1,
        )
        code, output = tiny.run(train_yaml)
        assert code == 0, output
        found[size] = train_yaml.parent, output
    return found


@pytest.mark.parametrize("size", [1, 2])
def test_the_best_weights_are_taken_and_training_stops_early(stopped: dict[int, tuple[Path, str]], size: int) -> None:
    folder, output = stopped[size]
    held_out, best = evaluations(folder)
    last = tiny.metrics(folder, "step")[-1]["step"]
    assert last == best + 4 < 60
    assert f"no better held-out loss since step {best}" in output
    assert f"taking the weights of step-{best}" in output
    kept = {path.name for path in (folder / "checkpoints").glob("step-*")}
    assert kept == {f"step-{best}", f"step-{last}"}
    assert held_out_loss(folder) == pytest.approx(held_out[best], rel=1e-4)


def test_with_shared_rows_a_run_has_the_same_held_out_losses_and_stops_at_the_same_step(
    stopped: dict[int, tuple[Path, str]],
) -> None:
    (alone, best), (shared, best_of_shared) = (evaluations(stopped[size][0]) for size in (1, 2))
    assert shared == pytest.approx(alone, rel=2e-6) and best_of_shared == best


@pytest.mark.parametrize("stage", [2, 3])
def test_the_best_weights_of_two_ranks_are_taken_by_one(tmp_path: Path, stage: int) -> None:
    train_yaml = write_run(tmp_path, stage, training__max_steps=30, training__save_steps=5)
    folder = train_yaml.parent
    code, output = tiny.run(train_yaml, change="stop 20")
    assert "saved at step 20" in output, output
    code, output = tiny.run(train_yaml, processes=1)
    assert code == 0, output
    held_out, best = evaluations(folder)
    manifest = json.loads((folder / "checkpoints" / f"step-{best}" / "manifest.json").read_text())
    assert manifest["world_size"] == 2
    assert "converting it" in output and f"taking the weights of step-{best}" in output
    assert held_out_loss(folder) == pytest.approx(held_out[best], rel=1e-4)
    # The best one damaged: the run ends with the last weights, and says so.
    (folder / "done.json").unlink()
    shard = next((folder / "checkpoints" / f"step-{best}").rglob("*model_states.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    code, output = tiny.run(train_yaml, processes=1)
    assert code == 0 and f"step-{best} had the lowest held-out loss but cannot be used" in output, output
    assert held_out_loss(folder) == pytest.approx(held_out[30], rel=1e-4)


def held_out_loss(folder: Path) -> float:
    """Compute the exported model's loss on the held-out rows by hand, one document at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    from qwen_job.data import open_prepared

    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    prepared = next(path.parent for path in (folder.parent / "prepared").rglob("index.json"))
    rows = open_prepared(prepared).eval
    assert rows is not None
    total, count = 0.0, 0
    for index in range(len(rows)):
        row, start = rows[index], 0
        for length in row.document_lengths.tolist():
            ids = torch.tensor(row.input_ids[start : start + length].astype("int64"))[None]
            labels = torch.tensor(row.labels[start : start + length].astype("int64"))
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum").item()
            count += int((labels[1:] != -100).sum())
            start += length
    return total / count
