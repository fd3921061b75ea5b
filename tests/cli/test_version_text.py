"""``qwen-job --version`` names the commit of a checkout, and of nothing else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from qwen_job import __version__
from qwen_job.cli import version


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkout with one commit, which --version is asked about."""
    identity = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environ = {**os.environ, **identity, "GIT_CONFIG_GLOBAL": os.devnull}
    (tmp_path / "file").write_text("one")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"], ["tag", "v0.1"]):
        subprocess.run(["git", *words], cwd=tmp_path, env=environ, check=True)
    monkeypatch.setattr(version, "resource", lambda: tmp_path)
    return tmp_path


def commit(repository: Path) -> str:
    words = ["git", "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(words, cwd=repository, check=True, capture_output=True, text=True).stdout.strip()


def test_a_checkout_names_its_commit(repository: Path) -> None:
    assert version.version_text().startswith(f"qwen-job {__version__} (commit {commit(repository)}")
    assert "with changes" not in version.version_text()


def test_changed_files_are_mentioned(repository: Path) -> None:
    (repository / "file").write_text("two")
    assert f"commit {commit(repository)} with changes" in version.version_text()


def test_a_damaged_repository_is_no_error(repository: Path) -> None:
    (repository / ".git" / "HEAD").write_text("nonsense")
    assert "(commit unknown: git refuses this folder" in version.version_text()


def test_an_installed_wheel_names_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "resource", lambda: tmp_path)
    assert "commit" not in version.version_text()
