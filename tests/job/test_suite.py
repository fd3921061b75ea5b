"""evaluate.suite: its short forms, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_job.job.evaluation import Suite
from tests.jobs import load, problems
from tests.support.suites import write_suite


def suite_of(folder: Path, text: str) -> Suite:
    job = load(folder, f"evaluate: {{suite: {text}}}\n")
    assert job.evaluate is not None and job.evaluate.suite is not None
    return job.evaluate.suite


@pytest.mark.parametrize("text", ["gsm8k", "[gsm8k]", "{tasks: gsm8k}", "{tasks: [gsm8k]}"])
def test_one_task_may_be_written_in_short(tmp_path: Path, text: str) -> None:
    assert suite_of(tmp_path, text).tasks == ["gsm8k"]


def test_a_relative_folder_starts_at_the_job(tmp_path: Path) -> None:
    write_suite(tmp_path / "tasks")
    assert suite_of(tmp_path, "{folder: tasks}").folder == str(tmp_path / "tasks")


def test_names_that_are_not_in_the_folder_may_be_tasks_of_lm_eval(tmp_path: Path) -> None:
    write_suite(tmp_path / "tasks")
    assert problems(tmp_path, "evaluate: {suite: {folder: tasks, tasks: [pick_answer, gsm8k]}}\n") == []


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("{}", "evaluate.suite", "name tasks of lm-eval"),
        ("[]", "evaluate.suite", "name tasks of lm-eval"),
        ("./tasks", "evaluate.suite.tasks", "is a path: write it as evaluate.suite.folder"),
        ("{tasks: ['https://x/y']}", "evaluate.suite.tasks", "is a path"),
        ("a task", "evaluate.suite.tasks", "is no name of a task"),
        ("{tasks: gsm8k, limit: 0}", "evaluate.suite.limit", ""),
        ("{tasks: gsm8k, few_shot: -1}", "evaluate.suite.few_shot", ""),
        ("{tasks: gsm8k, batch_size: auto}", "evaluate.suite.batch_size", ""),
        ("{tasks: gsm8k, backend: sglang}", "evaluate.suite.backend", "vllm"),
        ("{tasks: gsm8k, run_cod: true}", "evaluate.suite.run_cod", "run_code"),
        ("{folder: nowhere}", "evaluate.suite.folder", "no such folder"),
        ("{folder: empty}", "evaluate.suite.folder", "no .yaml file in it has a task:"),
        ("{folder: broken}", "evaluate.suite.folder", "rows.jsonl: no such file"),
        ("{folder: tasks, tasks: [pick_answers]}", "evaluate.suite.tasks[0]", "did you mean 'pick_answer'?"),
    ],
)
def test_a_suite_that_cannot_run_is_refused_with_its_field(tmp_path: Path, text: str, field: str, message: str) -> None:
    write_suite(tmp_path / "tasks")
    (write_suite(tmp_path / "broken") / "rows.jsonl").unlink()
    (tmp_path / "empty").mkdir()
    found = problems(tmp_path, f"evaluate: {{suite: {text}}}\n")
    assert found and all(field in one and message in one and "\n" not in one for one in found), found


@pytest.mark.parametrize("content", ["[", "task: [a]", "task: !function x.y", "a: &a [*a]", "\0", "task: " + "[" * 500])
def test_files_that_are_no_tasks_are_skipped(tmp_path: Path, content: str) -> None:
    (write_suite(tmp_path / "tasks") / "other.yaml").write_text(content)
    assert problems(tmp_path, "evaluate: {suite: {folder: tasks}}\n") == []
