"""The table of a sweep, from run folders in every state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qwen_job.cli.sweep import sweep
from qwen_job.errors import UsageError
from qwen_job.launch.outcomes import outcomes, runs_of_folder
from tests.jobs import FIVE_LINES, load

RUNS = [(f"seed={n}", {"train.seed": n}) for n in range(5)]


def run(folder: Path, name: str, **files: Any) -> None:
    (folder / name).mkdir(parents=True)
    for file, content in files.items():
        path = folder / name / {"done": "done.json", "evaluation": "evaluation.json"}.get(file, file)
        path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five runs: two that are done, one that trains, one that failed, one that has not begun."""
    run(
        tmp_path,
        "seed=0",
        done={"train_loss": 2.0, "eval_loss": None},
        heartbeat={"state": "done", "step": 9, "loss": 1.9},
    )
    run(
        tmp_path,
        "seed=1",
        done={"train_loss": 1.0, "eval_loss": None},
        heartbeat={"state": "done", "step": 9, "loss": 0.9},
    )
    run(tmp_path, "seed=2", heartbeat={"state": "training", "step": 3, "total_steps": 9, "loss": 0.1})
    run(tmp_path, "seed=3", heartbeat={"state": "failed", "step": 1, "loss": None})
    return tmp_path


def test_the_best_that_is_done_comes_first(folder: Path) -> None:
    found = outcomes(str(folder), RUNS)
    assert [outcome.folder for outcome in found] == ["seed=1", "seed=0", "seed=2", "seed=3", "seed=4"]
    assert [outcome.state for outcome in found] == ["done", "done", "training", "failed", "not started"]
    assert [outcome.mean_loss for outcome in found] == [1.0, 2.0, None, None, None]
    assert [outcome.loss for outcome in found] == [0.9, 1.9, 0.1, None, None], "as status shows it"


def test_held_out_data_decides_where_there_is_any(folder: Path) -> None:
    (folder / "seed=0" / "evaluation.json").write_text(json.dumps({"after": {"loss": 1.5}}))
    lines = [
        {"type": "eval", "step": 5, "loss": 1.8},
        {"type": "eval", "step": 9, "loss": 1.7},
        {"type": "step", "loss": 1},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"type": "eval", "lo'
    (folder / "seed=1" / "metrics.jsonl").write_text(text)
    found = outcomes(str(folder), RUNS)
    assert [(outcome.folder, outcome.eval_loss) for outcome in found[:2]] == [("seed=0", 1.5), ("seed=1", 1.7)]


def test_the_folder_s_own_list_is_enough(folder: Path) -> None:
    listed = [{"folder": name, "values": values} for name, values in RUNS]
    (folder / "sweep.json").write_text(json.dumps({"version": 1, "runs": listed}))
    assert runs_of_folder(folder) == (str(folder), RUNS)
    shown = CliRunner().invoke(sweep, [str(folder)])
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["train.seed", "STATE", "STEP", "LOSS", "MEAN", "LOSS", "EVAL", "LOSS", "RUN"]
    assert lines[1].split() == ["1", "done", "9/?", "0.9000", "1.0000", "seed=1"]
    assert lines[6:] == ["over 2 of 5 seeds: MEAN LOSS 1.5000 ± 0.7071"]


def test_seeds_are_summed_up_for_each_setting_of_the_other_fields(tmp_path: Path) -> None:
    losses = {(1e-5, 1): 1.0, (1e-5, 2): 2.0, (2e-5, 1): 0.5, (2e-5, 2): 0.7, (3e-5, 1): 0.1}
    runs = []
    for (rate, seed), loss in losses.items():
        runs.append((f"{rate}-{seed}", {"train.learning_rate": rate, "train.seed": seed}))
        run(tmp_path, runs[-1][0], done={"train_loss": 9.0, "eval_loss": loss}, heartbeat={"state": "done"})
    index = {"runs": [{"folder": name, "values": values} for name, values in runs]}
    (tmp_path / "sweep.json").write_text(json.dumps(index))
    lines = CliRunner().invoke(sweep, [str(tmp_path)]).stdout.splitlines()[6:]
    assert lines == [
        "over 2 seeds, train.learning_rate 2e-05: EVAL LOSS 0.6000 ± 0.1414",
        "over 2 seeds, train.learning_rate 1e-05: EVAL LOSS 1.5000 ± 0.7071",
    ], "one seed alone has no spread"


def test_a_job_with_a_sweep_is_read_without_one_of_its_runs_there(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(FIVE_LINES + "sweep: {train.seed: [1, 2]}\n")
    shown = CliRunner().invoke(sweep, [str(tmp_path / "job.yaml"), "--json"])
    assert [(row["run"], row["state"]) for row in json.loads(shown.stdout)] == [
        ("seed=1", "not started"), ("seed=2", "not started"),
    ]  # fmt: skip


def test_what_is_no_sweep_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no sweep\.json"):
        runs_of_folder(tmp_path)
    load(tmp_path)
    result = CliRunner().invoke(sweep, [str(tmp_path / "job.yaml")])
    assert isinstance(result.exception, UsageError) and "has no sweep" in str(result.exception)
