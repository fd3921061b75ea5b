"""``qwen-job docs`` prints the guides that ship with it, for people and for programs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from qwen_job import resources
from qwen_job.cli import cli
from qwen_job.cli.docs import docs
from qwen_job.errors import UsageError
from tests.support.pages import blocks


def output(*words: str) -> str:
    result = CliRunner().invoke(docs, list(words))
    assert result.exit_code == 0, result.output
    return result.output


def test_every_guide_is_a_topic_with_its_title(checkout: Path) -> None:
    listed = dict(line.split(maxsplit=1) for line in output().splitlines())
    guides = {path.name.partition(".")[0] for path in (checkout / "docs").glob("*.md")}
    assert listed.keys() == guides | {"agents", "changes"}
    assert listed["watching"] == "Watching a run"


@pytest.mark.parametrize(("words", "name"), [(["slurm"], "slurm.md"), (["slurm", "--language", "zh"], "slurm.zh-CN.md"),
                                             (["job.md", "--language", "zh"], "job.md"),
                                             (["agents"], "../AGENTS.md"),
                                             (["changes", "--language", "zh"], "../CHANGELOG.md")])  # fmt: skip
def test_a_guide_is_printed_as_it_is(checkout: Path, words: list[str], name: str) -> None:
    assert output(*words) == (checkout / "docs" / name).read_text("utf-8")


def test_a_program_gets_title_summary_and_text(checkout: Path) -> None:
    page = json.loads(output("plan", "--json"))
    assert page["title"] == "Planning a job" and page["text"] == (checkout / "docs" / "plan.md").read_text("utf-8")
    assert page["summary"].startswith("Before you use a GPU")
    assert all(one["title"] and one["summary"] for one in json.loads(output("--json")))


def test_a_mistyped_topic_is_named_with_the_right_one() -> None:
    result = CliRunner().invoke(docs, ["trainin"])
    assert isinstance(result.exception, UsageError) and "did you mean 'training'?" in str(result.exception)


def test_an_installation_without_guides_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "resource", lambda *parts: tmp_path.joinpath(*parts))
    result = CliRunner().invoke(docs)
    assert "has no guides" in str(result.exception)


def test_the_pages_for_programs_name_what_else_there_is(checkout: Path) -> None:
    for page in ("AGENTS.md", "llms.txt"):
        text = (checkout / page).read_text("utf-8")
        for name in ("docs/demo.ipynb", "configs/job.schema.json", "configs/schemastore.json", "CONTRIBUTING.md"):
            assert name in text, (page, name)
            assert (checkout / name).is_file()


def test_the_commands_for_agents_exist(checkout: Path) -> None:
    lines = [line for block in blocks(checkout / "AGENTS.md", "sh") for line in block.splitlines()]
    assert len(lines) > 5
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        context, command = click.Context(cli, info_name="qwen-job"), cli
        while isinstance(command, click.Group):
            found = command.get_command(context, words[0])
            assert found is not None, line
            command, words = found, words[1:]  # type: ignore[assignment]
        command.make_context(line, list(words), parent=context)
