"""A run that is over, longer, shorter, of other data or of another batch: real runs out of one folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.train import tiny

pytestmark = [pytest.mark.train, pytest.mark.slow]

SHORT = {"world_size": 1, "training__max_steps": 4, "training__save_steps": 2, "training__warmup_ratio": 0.0}


@pytest.fixture(scope="module")
def over(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, complete."""
    train_yaml = tiny.write_run(tmp_path_factory.mktemp("resuming") / "run", 0, **SHORT)
    code, output = tiny.run(train_yaml, 1)
    assert code == 0, output
    return train_yaml.parent


def again(over: Path, name: str, ranks: int = 1, **changes: Any) -> tuple[int, str, Path]:
    """Run a copy of that run with other settings, without its done.json unless ``name`` says so."""
    folder = over.parent / name
    shutil.copytree(over, folder)
    if "complete" not in name:
        (folder / "done.json").unlink()
    code, output = tiny.run(tiny.write_run(folder, 0, **{**SHORT, **changes}), ranks)
    return code, output, folder


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in tiny.metrics(folder, "step")]


def test_a_run_that_was_ended_before_its_export_exports_at_once(over: Path) -> None:
    code, output, folder = again(over, "unexported")
    assert code == 0 and "step 4 of 4 was saved" in output, output
    assert steps(folder) == [1, 2, 3, 4]
    first, second = ((run / "model" / "model.safetensors").read_bytes() for run in (over, folder))
    assert first == second
    done = json.loads((folder / "done.json").read_text())
    assert (done["step"], done["total_steps"]) == (4, 4)


def test_a_saved_step_past_the_new_end_is_refused_by_the_field_that_moved_it(over: Path) -> None:
    code, output, folder = again(over, "shorter", training__max_steps=2)
    assert code == 3 and "train.max_steps: 2 ends before step 4" in output, output
    assert not (folder / "done.json").exists() and steps(folder) == [1, 2, 3, 4]
    code, output, _ = again(over, "shorter-epochs", training__max_steps=-1, training__num_train_epochs=0.05)
    assert code == 3 and "train.num_train_epochs: 0.05 ends before step 4" in output, output


def test_a_complete_run_is_extended_by_its_word_and_by_no_other(over: Path) -> None:
    code, output, folder = again(over, "complete", training__max_steps=6)
    assert code == 3 and "training.max_steps 4 -> 6" in output and "train.resume: extend" in output, output
    assert (folder / "done.json").read_bytes() == (over / "done.json").read_bytes()
    code, output = tiny.run(tiny.write_run(folder, 0, **{**SHORT, "training__max_steps": 6, "resume": "extend"}), 1)
    assert code == 0 and "cosine schedule of 6 steps" in output, output
    assert steps(folder) == [1, 2, 3, 4, 5, 6]
    # Five of six steps down the cosine, not the zero that the shorter schedule ended with; Adam's moments are kept.
    rates = {line["step"]: line["learning_rate"] for line in tiny.metrics(folder, "step")}
    assert rates[5] == pytest.approx(5e-3 * 0.25) and rates[6] == pytest.approx(5e-3 * 0.0669873)
    assert json.loads((folder / "done.json").read_text())["step"] == 6
    assert tiny.run(folder / "train.yaml", 1)[0] == 0 and steps(folder) == [1, 2, 3, 4, 5, 6]


def test_other_rows_under_the_same_path_are_refused_unless_a_word_allows_them(over: Path) -> None:
    changes = {"training__max_steps": 6, "data__train": [{"path": str(over.parent / "data.json"), "weight": 2.0}]}
    code, output, folder = again(over, "rows", **changes)
    assert code == 3 and "data.train: the rows to train on differ" in output, output
    assert steps(folder) == [1, 2, 3, 4]
    code, output = tiny.run(tiny.write_run(folder, 0, **{**SHORT, **changes, "resume": "changed"}), 1)
    assert code == 0 and "the epoch begins again with the first of the new rows" in output, output
    assert steps(folder)[-2:] == [5, 6]
    kept = json.loads((folder / "checkpoints" / "step-6" / "identity.json").read_text())
    assert kept["course"] == [4, 0, 0]


def test_another_base_model_of_the_same_shape_is_refused(over: Path) -> None:
    (over.parent / "other.yaml").write_text((over.parent / "tiny.yaml").read_text() + "hidden_act: gelu\n")
    changes = {"training__max_steps": 6, "model__name": str(over.parent / "other.yaml")}
    code, output, _ = again(over, "model", **changes)
    assert code == 3 and "model.name: the base model differ" in output, output


def test_another_global_batch_skips_and_repeats_no_row(over: Path) -> None:
    whole = {"training__max_steps": -1, "training__num_train_epochs": 1.0}
    calm = tiny.write_run(over.parent / "calm", 0, **{**SHORT, **whole, "training__learning_rate": 1e-9})
    assert tiny.run(calm, 1)[0] == 0
    code, output, folder = again(over, "wider", 2, **{**whole, "world_size": 2})
    assert code == 0 and "global batch 2 -> 4 rows: resuming at row 9" in output, output
    tokens = [sum(line["tokens"] for line in tiny.metrics(run, "step")) for run in (calm.parent, folder)]
    assert tokens[0] == tokens[1]
    last = tiny.metrics(folder, "step")[-1]
    rows = json.loads((folder / "checkpoints" / f"step-{last['step']}" / "identity.json").read_text())["rows"]
    assert last["epoch"] == 1.0 and last["step"] == 4 + -(-(rows - 8) // 4)


def test_the_longest_rows_come_first_and_stay_there_when_the_run_resumes_otherwise(over: Path) -> None:
    """Two runs of two seconds each."""
    ordered = {**SHORT, "data__packing": False, "training__max_steps": 6, "training__save_total_limit": None}
    whole = tiny.write_run(over.parent / "longest", 0, **{**ordered, "training__longest_first": True})
    code, output = tiny.run(whole, 1)
    assert code == 0, output
    expected = {line["step"]: (line["tokens"], line["loss"]) for line in tiny.metrics(whole.parent, "step")}
    assert expected[1][0] == max(tokens for tokens, _ in expected.values())
    part = over.parent / "longest-resumed"
    shutil.copytree(whole.parent, part)
    for made in (part / "checkpoints" / "step-4", part / "checkpoints" / "step-6"):
        shutil.rmtree(made)
    (part / "done.json").unlink()
    code, output = tiny.run(tiny.write_run(part, 0, **ordered), 1)
    assert code == 0 and "resuming from step-2" in output, output
    assert "train.longest_first: has no effect on a run that has begun" in output
    resumed = tiny.metrics(part, "step")[-4:]
    assert {line["step"]: (line["tokens"], line["loss"]) for line in resumed} == {n: expected[n] for n in (3, 4, 5, 6)}


def test_one_mislabelled_row_of_short_answers_is_reported_and_ends_no_run(tmp_path: Path) -> None:
    rows = [{"instruction": f"Ask {number}", "output": "ok"} for number in range(40)]
    rows[23]["output"] = "97 zebras"
    (tmp_path / "data.json").write_text(json.dumps(rows))
    short = {"world_size": 1, "data__packing": False, "training__num_train_epochs": 2.0, "training__save_steps": 1000}
    changes = {**short, "training__gradient_accumulation_steps": 1, "guards__loss_spike_factor": 10.0}
    train_yaml = tiny.write_run(tmp_path / "run", 0, **changes, training__learning_rate=1e-2)
    code, output = tiny.run(train_yaml, 1)
    assert code == 0, output
    seen = tiny.metrics(train_yaml.parent, "guard")
    assert seen and all(line["action"] == "watch" and line["rows"] == [[23]] for line in seen), seen
    assert "data.json:24" in output and "the run ends if it stays there" in output
    again = tiny.write_run(tmp_path / "without", 0, **changes, guards__skip_rows=[23], training__learning_rate=1e-2)
    code, output = tiny.run(again, 1)
    assert code == 0 and "train.skip_rows: row 23 (data.json:24) is skipped" in output, output
    assert [line["action"] for line in tiny.metrics(again.parent, "guard")] == ["leave out"]
    code, output = tiny.run(tiny.write_run(tmp_path / "beyond", 0, **changes, guards__skip_rows=[40]), 1)
    assert code == 3 and "train.skip_rows: 40: there are 40 rows" in output, output
