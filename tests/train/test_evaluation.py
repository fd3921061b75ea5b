"""Held-out loss: the best checkpoint is kept and taken, and training stops when nothing gets better."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train import tiny

pytestmark = [pytest.mark.train, pytest.mark.slow]


@pytest.mark.parametrize("stage", [0, 3])
def test_the_best_weights_are_taken_and_training_stops_early(tmp_path: Path, stage: int) -> None:
    tiny.conversations(tmp_path / "data.json", 24)
    train_yaml = tiny.write_run(
        tmp_path / "run",
        stage,
        data__eval_split=0.4,
        training__num_train_epochs=400.0,
        training__max_steps=60,
        training__learning_rate=0.05,  # learns the few rows by heart, and nothing else
        training__eval_steps=2,
        training__save_steps=6,
        training__save_total_limit=1,
        training__early_stopping_patience=2,
        training__load_best_model_at_end=True,
    )
    folder = train_yaml.parent
    code, output = tiny.run(train_yaml)
    assert code == 0, output
    held_out = {line["step"]: line["loss"] for line in tiny.metrics(folder, "eval")}
    best = min(held_out, key=lambda step: held_out[step])
    last = tiny.metrics(folder, "step")[-1]["step"]
    assert last == best + 4 < 60
    assert f"no better held-out loss since step {best}" in output
    assert f"taking the weights of step-{best}" in output
    kept = {path.name for path in (folder / "checkpoints").glob("step-*")}
    assert kept == {f"step-{best}", f"step-{last}"}
    assert held_out_loss(folder) == pytest.approx(held_out[best], rel=1e-4)


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
