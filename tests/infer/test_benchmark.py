"""Scores of lm-eval before and after training, with a real model: 20 s, most of it lm-eval's import."""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qwen_job.cli.evaluate import evaluate as command
from qwen_job.errors import DataError, EnvironmentFault, UsageError
from qwen_job.infer import benchmark as module
from qwen_job.infer.harness import load_tasks
from qwen_job.infer.suite import Suite
from tests.support.optional import skip
from tests.support.suites import PICK, write_suite

if find_spec("lm_eval") is None:
    skip("eval", "lm_eval is not installed")
# lm-eval and what it imports warn about each other.
pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True, scope="module")
def own_datasets(tmp_path_factory: pytest.TempPathFactory) -> None:
    # datasets reads it as it is imported.
    os.environ.setdefault("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))


@pytest.fixture(scope="module")
def scored(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A run that was scored by the command, the JSON that it printed, and what it reported."""
    folder = tmp_path_factory.mktemp("scored")
    run, tasks = folder / "run", write_suite(folder / "tasks")
    shutil.copytree(taught, run)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(command, [run.name, "--task-folder", tasks.name, "--json"])
    assert result.exit_code == 0, result.output
    return run, json.loads(result.stdout), result.stderr


def test_training_raises_the_scores_of_what_was_taught(scored: tuple[Path, dict[str, Any], str]) -> None:
    _, values, _ = scored
    pick, say = (next(one for one in values["scores"]["results"] if one["task"] == name)
                 for name in ("pick_answer", "say_answer"))  # fmt: skip
    assert (say["metric"], say["before"], say["after"], say["samples"]) == ("exact_match", 0.0, 1.0, 6)
    assert pick["after"] == 1.0 and say["verdict"] == "better" and say["paired"]
    # The six differences of say_answer are all 1.
    assert (say["difference"], say["stderr"]) == (1.0, 0.0)


def test_scores_appear_in_the_run_folder_the_report_and_on_the_terminal(
    scored: tuple[Path, dict[str, Any], str],
) -> None:
    from qwen_job.run.scores import read_scores, score_lines

    run, values, _ = scored
    assert json.loads((run / "evaluation.json").read_text()) == values
    assert "<td>say_answer</td>" in (run / "report.html").read_text()
    assert any(line.split()[:3] == ["say_answer", "exact_match", "6"] for line in score_lines(read_scores(values)))


def test_scores_before_training_are_measured_once_for_a_model_and_a_suite(
    scored: tuple[Path, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, values, _ = scored
    folders: list[Path] = []
    real = module.score_folder
    monkeypatch.setattr(module, "score_folder", lambda folder, suite: [folders.append(folder), real(folder, suite)][1])
    said: list[str] = []
    suite = Suite(folder=run.parent / "tasks")
    again = module.benchmark(run, suite, progress=said.append)
    assert again == values["scores"]
    assert folders == [run / "model"] and any("before training: from" in line for line in said)
    (run.parent / "tasks" / "pick_answer.yaml").open("a").write("# changed\n")
    module.benchmark(run, Suite(folder=suite.folder, tasks=("pick_answer",), limit=2), progress=said.append)
    assert len(folders) == 3


@pytest.mark.parametrize(
    ("suite", "error", "message"),
    [
        ({"tasks": ("pick_anser",)}, UsageError, "lm-eval has no such task"),
        ({"tasks": ("absent_rows",)}, DataError, r"absent_rows: its data cannot be loaded: .*gone\.jsonl"),
        ({"tasks": ("on_a_hub",)}, DataError, r"on_a_hub: its data .*no-such-owner.*qwen-job evaluate --check"),
        ({"tasks": ("unsafe",)}, UsageError, r"unsafe: runs the model's answers as code.*run_code"),
    ],
)
def test_a_task_that_cannot_be_had_is_one_line(
    suite: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    import yaml

    folder = write_suite(tmp_path / "tasks")
    for name, more in (
        ("absent_rows", {"dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}}),
        ("on_a_hub", {"dataset_path": "no-such-owner/rows", "dataset_kwargs": {}}),
        ("unsafe", {"unsafe_code": True}),
    ):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**PICK, "task": name, **more}))
    with pytest.raises(error, match=message) as caught:
        load_tasks(Suite(folder=folder, **suite))
    assert "\n" not in str(caught.value)


def test_check_loads_the_tasks_and_counts_their_questions(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["--check", "--task-folder", str(write_suite(tmp_path / "tasks"))])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == ["pick_answer: 6 questions, 0-shot", "say_answer: 6 questions, 0-shot"]


def test_a_harness_that_is_not_installed_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    from qwen_job.infer.harness import harness_version

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(EnvironmentFault, match=r"evaluate\.suite: lm-eval is not installed .*'qwen-job\[eval\]'"):
        harness_version(Suite(tasks=("gsm8k",)))
