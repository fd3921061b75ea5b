"""``qwen-job doctor``: data on stdout, words on stderr, and never over a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from qwen_job.cli.doctor import doctor
from qwen_job.errors import EnvironmentFault, UsageError
from tests.support.kubectl import CRDS, FORBIDDEN, Recorded, items, node


def test_a_kubernetes_profile_goes_to_stdout_and_its_surprises_to_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    kubectl = Recorded(tmp_path)
    kubectl.answers(("api-resources", CRDS), ("get nodes", items(node())), ("get storage", FORBIDDEN), ("get", items()))
    shown = CliRunner().invoke(doctor, ["--target", "kubernetes"])
    assert yaml.safe_load(shown.stdout)["kubernetes"]["kind"] == "pytorchjob"
    assert "storageclasses: you are not allowed to list them" in shown.stderr and "8 x NVIDIA-A100" in shown.stderr
    site = tmp_path / "site.yaml"
    assert CliRunner().invoke(doctor, ["--target", "kubernetes", "-o", str(site)]).stdout == ""
    assert site.read_text() == shown.stdout


def test_a_file_that_is_there_is_kept_and_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "site.yaml").write_text("mine")
    result = CliRunner().invoke(doctor, ["--target", "slurm", "-o", str(tmp_path / "site.yaml")])
    assert isinstance(result.exception, EnvironmentFault) and "already exists" in str(result.exception)
    assert (tmp_path / "site.yaml").read_text() == "mine"


def test_without_slurm_s_tools_it_says_where_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(doctor, ["--target", "slurm"])
    assert isinstance(result.exception, EnvironmentFault)
    assert str(result.exception) == "sinfo: not on this machine; run this on a login node of the cluster"
    refused = CliRunner().invoke(doctor, ["--target", "kubernetes", "--partition", "x"])
    assert isinstance(refused.exception, UsageError)
