"""A package that only an extra brings is named with the extra; any other missing one is a fault of ours."""

from __future__ import annotations

import pytest

from qwen_job.cli import cli, main
from qwen_job.cli.extras import absent, extras


def test_the_extras_of_a_package_are_those_of_the_metadata() -> None:
    assert extras("torch") == ["train"]
    assert set(extras("numpy")) == {"train", "data"}
    assert not extras("click") and not extras("pytest") and not extras("")


def test_what_no_extra_brings_is_no_matter_of_installing() -> None:
    assert absent(ModuleNotFoundError(name="qwen_job.cli.nothing")) is None


def test_a_command_without_its_packages_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'torch.cuda'", name="torch.cuda")

    monkeypatch.setattr(cli, "main", missing)
    with pytest.raises(SystemExit) as end:
        main(["chat", "runs/demo"])
    assert end.value.code == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert "this command needs torch, which is not installed in" in line
    assert "pip install torch 'qwen-job[train]' (training, chat, evaluate)" in line
