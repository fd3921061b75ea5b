"""The page of ten tasks: its jobs are planned, its commands run, and the README leads to every page."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from qwen_job.cli import cli
from qwen_job.job import load_job
from qwen_job.job.document import overlay
from qwen_job.resources import resource
from qwen_job.run.folder import RunFolder
from tests.support.pages import blocks
from tests.test_guides import plain

PAGE = "how-do-i"
# The five lines of the README.
JOB = """\
name: my-run
model: Qwen/Qwen-1_8B-Chat
data: {train: /shared/data/chats.json}
output: /shared/runs/my-run
cluster: {gpu: A100-80G, nodes: 1, gpus_per_node: 2}
"""
# What needs neither a cluster, a network nor a finished run.
RUN = ("plan job.yaml", "render job.yaml", "data check chats.json", "data clean", "data show", "exit-codes", "docs")
ELSEWHERE = ("--model Qwen/",)


def sections(checkout: Path) -> dict[str, str]:
    text = (checkout / "docs" / f"{PAGE}.md").read_text("utf-8")
    return {title: body for title, _, body in (part.partition("\n") for part in text.split("\n## ")[1:])}


def fenced(body: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", body, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(10))
def test_the_commands_of_each_task_run(
    checkout: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    title, body = list(sections(checkout).items())[number]
    monkeypatch.chdir(tmp_path)
    shutil.copy(resource("configs", "data", "demo.json"), "chats.json")
    written = yaml.safe_load(JOB)
    for block in fenced(body, "yaml"):
        written = overlay(written, yaml.safe_load(block))
    Path("job.yaml").write_text(yaml.safe_dump(written), "utf-8")
    ran = 0
    for line in "".join(fenced(body, "sh")).splitlines():
        words = shlex.split(line.partition(" | ")[0])
        if words[0] != "qwen-job":
            continue
        text = " ".join(words[1:])
        if (text.startswith(RUN) and not any(word in text for word in ELSEWHERE)) or "--dry-run" in words:
            result = CliRunner().invoke(cli, words[1:])
            assert result.exit_code == 0 and result.stdout, f"{title}: {line}: {result.output} {result.exception}"
            ran += 1
        else:
            assert CliRunner().invoke(cli, [*words[1:3], "--help"]).exit_code == 0, line
    assert ran


@pytest.mark.parametrize("language", ["sh", "yaml", "python"])
def test_both_languages_show_the_same(checkout: Path, language: str) -> None:
    english, chinese = (plain(checkout, f"{PAGE}{suffix}.md", language) for suffix in ("", ".zh-CN"))
    assert english and english == chinese


def test_there_are_ten_tasks_with_commands(checkout: Path) -> None:
    found = sections(checkout)
    assert len(found) == 10 and all(fenced(body, "sh") for body in found.values())


def test_the_python_of_the_page_reads_the_runs_of_a_sweep(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks(checkout / "docs" / f"{PAGE}.md", "python")
    job = yaml.safe_dump({**yaml.safe_load(JOB), "sweep": {"train.seed": [1, 2]}, "output": str(tmp_path / "run")})
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(job, "utf-8")
    first = RunFolder(Path(load_job(["job.yaml"]).points[0].job.output))
    first.path.mkdir(parents=True)
    first.metrics.write_text('{"type": "step", "loss": 3.5}\n{"type": "step", "loss": 2.5}\n', "utf-8")
    exec(compile(code, f"{PAGE}.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == ["1 2.5", "2 not started"]


@pytest.mark.parametrize(("readme", "chinese"), [("README.md", False), ("README.zh-CN.md", True)])
def test_every_page_is_reached_from_the_readme(checkout: Path, readme: str, chinese: bool) -> None:
    seen: set[Path] = set()
    waiting = [checkout / readme]
    while waiting:
        page = waiting.pop()
        if page in seen or not page.is_file() or page.suffix != ".md":
            continue
        seen.add(page)
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in link:
                waiting.append((page.parent / link).resolve())
    pages = [page for page in (checkout / "docs").glob("*.md") if page.name.endswith(".zh-CN.md") == chinese]
    direct = (checkout / readme).read_text("utf-8")
    assert [page.name for page in pages if page.resolve() not in seen] == []
    assert [page.name for page in pages if f"docs/{page.name}" not in direct] == []
    assert checkout / "charts" / "qwen-job" / "README.md" in seen
