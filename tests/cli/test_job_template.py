"""A job's chat template is checked before anything is planned, as far as this machine has it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_job.cli import main
from tests.chat import cases
from tests.jobs import FIVE_LINES

COMMANDS = (["plan"], ["render", "-t", "slurm"], ["submit", "-t", "local"])
DATA = FIVE_LINES.replace("data: /data/chats.json", "data: {train: /data/chats.json, template: TEMPLATE}")


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command on a job with a template: (exit code, stderr without the folder)."""

    def run(command: list[str], template: str, text: str = "") -> tuple[int, str]:
        path = tmp_path / "job.yaml"
        path.write_text(DATA.replace("TEMPLATE", template) + text, "utf-8")
        with pytest.raises(SystemExit) as end:
            main([*command[:1], str(path), *command[1:]])
        assert isinstance(end.value.code, int)
        return end.value.code, capsys.readouterr().err.replace(f"{tmp_path}/", "")

    return run


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("nope.jinja", "nope.jinja: no such file; write a Jinja file, auto or chatml\n"),
        ("chatlm", "chatlm: no such file; write a Jinja file, auto or chatml; did you mean 'chatml'?\n"),
        ("Auto", "did you mean 'auto'?\n"),
        ("bad.jinja", "bad.jinja:2: is no Jinja template: "),
        ("filter.jinja", "filter.jinja:1: is no Jinja template: No filter named 'nope'; correct it"),
        ("latin.jinja", "latin.jinja: is not UTF-8 text"),
        ("folder", "folder: is a folder"),
    ],
)
def test_a_wrong_template_is_refused_where_it_is_written(
    run: Run, tmp_path: Path, command: list[str], template: str, said: str
) -> None:
    (tmp_path / "bad.jinja").write_text("{{ messages }}\n{% if x %}")
    (tmp_path / "filter.jinja").write_text("{{ messages | nope }}")
    (tmp_path / "latin.jinja").write_bytes(b"\xe9")
    (tmp_path / "folder").mkdir()
    code, err = run(command, template)
    assert code == 3 and err.startswith("error: job.yaml:3:33: data.template: ") and said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "qwen3_6"])
def test_templates_of_models_pass(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "own.jinja").write_text(cases.text_of(name), "utf-8")
    code, err = run(["render", "-t", "slurm"], "own.jinja")
    assert code == 0 and "template" not in err


def test_a_template_that_only_the_nodes_have_is_not_refused(run: Run) -> None:
    code, err = run(["render", "-t", "slurm"], "/cluster/own.jinja")
    assert code == 0
    assert "warning: data.template: /cluster/own.jinja: this machine cannot read it (No such file or directory)" in err


def test_a_pipe_does_not_block(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jinja")
    code, err = run(["render", "-t", "slurm"], "pipe.jinja")
    assert code == 3 and "pipe.jinja: is a pipe, not a file; write a Jinja file" in err


@pytest.mark.parametrize(
    ("value", "said"), [("chatlm", "did you mean 'chatml'?"), ("bad.jinja", "bad.jinja:1: is no Jinja template")]
)
def test_a_sweep_is_blamed_at_its_value(run: Run, tmp_path: Path, value: str, said: str) -> None:
    (tmp_path / "bad.jinja").write_text("{% if x %}")
    sweep = f"sweep: {{data.template: [chatml, {value}], train.seed: [1, 2]}}\n"
    code, err = run(["plan"], "auto", sweep)
    assert code == 3 and err.startswith("error: job.yaml:6:33: sweep.data.template[1]: ") and said in err
    assert len(err.splitlines()) == 1
