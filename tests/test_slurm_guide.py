"""The guide to Slurm: its YAML is read as it stands there, its commands exist, and both languages show the same."""

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


def blocks(checkout: Path, name: str, language: str) -> list[str]:
    text = (checkout / "docs" / name).read_text("utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [re.sub(r"[ \t]+#.*", "", block) for block in found]


@pytest.mark.parametrize("language", ["sh", "yaml"])
def test_both_languages_show_the_same(checkout: Path, language: str) -> None:
    shown = blocks(checkout, "slurm.md", language)
    assert shown and shown == blocks(checkout, "slurm.zh-CN.md", language)


def test_the_yaml_of_the_guide_renders(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    shown = blocks(checkout, "slurm.md", "yaml")
    for number, block in enumerate(shown):
        layers = [write(tmp_path), write(tmp_path, block, base="", name=f"layer{number}.yaml")]
        assert render(make_plan(load_job(layers)), "slurm").text.startswith("#!/bin/bash")
    assert len(shown) == 3


def test_the_commands_of_the_guide_exist(checkout: Path) -> None:
    lines = [line for block in blocks(checkout, "slurm.md", "sh") for line in block.splitlines()]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line.partition(" | ")[0])
        context = click.Context(cli, info_name="qwen-job")
        command = cli.get_command(context, words[1])
        assert words[0] == "qwen-job" and command is not None
        command.make_context(words[1], words[2:], parent=context)
