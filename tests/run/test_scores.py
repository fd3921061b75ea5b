"""Differences with their errors, and what of a damaged evaluation.json is read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_job.run.scores import Comparison, read_scores, save_evaluation, score_lines
from tests.support.run_folders import run_folder

ONE = Comparison("gsm8k", "exact_match", True, 100, 5, 0.5, 0.05, 0.4, 0.05, -0.1, 0.04, True)


def test_a_difference_of_two_standard_errors_is_called_better_or_worse() -> None:
    assert ONE.verdict == "worse"
    assert replace(ONE, difference=0.1).verdict == "better"
    assert replace(ONE, higher_is_better=False).verdict == "better"
    assert replace(ONE, difference=-0.07).verdict == ""
    assert replace(ONE, stderr=None).verdict == ""
    assert replace(ONE, difference=0.0, stderr=0.0).verdict == ""


def test_the_table_names_what_got_worse() -> None:
    lines = score_lines([ONE, replace(ONE, task="mmlu", before=None, before_stderr=None, difference=None, stderr=None)])
    assert lines[1].split("  ")[:3] == ["gsm8k", "exact_match", "100"]
    assert "0.5000 ± 0.0500  0.4000 ± 0.0500  -0.1000 ± 0.0400  worse" in lines[1]
    assert "–" in lines[2] and lines[-1] == "worse after training: gsm8k (exact_match)"


@pytest.mark.parametrize("scores", [None, 1, [], {"results": 1}, {"results": [1, {}, {"after": math.nan}, None]}])
def test_what_is_no_score_is_left_out(scores: object) -> None:
    assert read_scores({"scores": scores}) == []


def test_scores_survive_the_file() -> None:
    assert read_scores(json.loads(json.dumps({"scores": {"results": [ONE.to_dict()]}}))) == [ONE]


def test_held_out_loss_and_scores_of_the_same_weights_are_kept_together(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    save_evaluation(run, {"after": {"loss": 1.0}})
    assert save_evaluation(run, {"scores": {"results": []}})["after"] == {"loss": 1.0}
    (run / "done.json").write_text('{"step": 16}')
    assert "after" not in save_evaluation(run, {"scores": {"results": []}})
