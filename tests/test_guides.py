"""The guides: their YAML is read as it stands there, their commands exist, and both languages show the same."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from qwen_job.cli import cli
from qwen_job.job import load_job
from qwen_job.plan import make_plan
from qwen_job.render import render
from tests.jobs import write
from tests.support.pages import blocks

GUIDES = ("architecture", "image", "kubernetes", "plan", "python", "slurm", "training", "watching")


def plain(checkout: Path, name: str, language: str) -> list[str]:
    """Return a guide's blocks without their comments."""
    found = blocks(checkout / "docs" / name, language)
    return [re.sub(r"^# .*|[ \t]+#.*", "", block, flags=re.MULTILINE) for block in found]


@pytest.mark.parametrize("guide", GUIDES)
def test_both_languages_show_the_same(checkout: Path, guide: str) -> None:
    english, chinese = (
        [plain(checkout, f"{guide}{suffix}.md", language) for language in ("sh", "text", "yaml", "python")]
        for suffix in ("", ".zh-CN")
    )
    assert any(english) and english == chinese


@pytest.mark.parametrize(("guide", "count"), [("slurm", 3), ("training", 8), ("watching", 2)])
def test_the_yaml_of_the_guides_renders(checkout: Path, tmp_path: Path, guide: str, count: int) -> None:
    (tmp_path / "templates").mkdir()
    shown = plain(checkout, f"{guide}.md", "yaml")
    for number, block in enumerate(shown):
        layers = [write(tmp_path), write(tmp_path, block, base="", name=f"layer{number}.yaml")]
        assert render(make_plan(load_job(layers)), "slurm").text.startswith("#!/bin/bash")
    assert len(shown) == count


@pytest.mark.parametrize(
    ("guide", "least"), [("kubernetes", 5), ("plan", 8), ("slurm", 6), ("training", 8), ("watching", 2)]
)
def test_the_commands_of_the_guides_exist(checkout: Path, guide: str, least: int) -> None:
    lines = [line for block in plain(checkout, f"{guide}.md", "sh") for line in block.splitlines()]
    assert len(lines) >= least
    for line in lines:
        words = shlex.split(line.partition(" | ")[0])
        context = click.Context(cli, info_name="qwen-job")
        command: click.Command | None = cli
        rest = words[1:]
        while isinstance(command, click.Group):
            command, rest = command.get_command(context, rest[0]), rest[1:]
        assert words[0] == "qwen-job" and command is not None, line
        command.make_context(words[1], rest, parent=context)


def quoted(page: Path, heading: str) -> list[str]:
    """Return the messages in the first column of a guide's table of errors."""
    table = page.read_text("utf-8").partition(f"\n| {heading} |")[2].partition("\n\n")[0]
    return [words for row in table.splitlines()[2:] for words in re.findall(r"`([^`]+)`", row.split("|")[1])]


def test_the_messages_in_the_guide_to_training_are_those_of_the_code(checkout: Path) -> None:
    messages = quoted(checkout / "docs" / "training.md", "message")
    code = " ".join(path.read_text("utf-8") for path in (checkout / "qwen_job").rglob("*.py"))
    fixed = [re.sub(r" (nan|\.\.\.|SIGKILL|900 s)$", " ", words).strip() for words in messages]
    assert len(fixed) >= 8
    assert [words for words in fixed if words not in code] == []
    assert quoted(checkout / "docs" / "training.zh-CN.md", "提示") == messages
