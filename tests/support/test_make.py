"""The Makefile and its scripts say what is wrong on machines that lack something."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has the basic tools and neither Python nor a package manager."""
    for tool in ("bash", "cat", "cksum", "dirname", "grep", "id", "sed", "tr"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    return {"PATH": str(tmp_path)}


def setup(checkout: Path, level: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(checkout / "scripts" / "setup.sh"), level]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_without_a_python_the_setup_says_which_it_needs(checkout: Path, bare: dict[str, str]) -> None:
    done = setup(checkout, "run", bare)
    assert done.returncode == 1 and "No Python >= 3.11" in done.stderr
    named = setup(checkout, "run", {**bare, "PYTHON": "python2"})
    assert named.returncode == 1 and "PYTHON=python2 is not one" in named.stderr


def test_without_apt_the_setup_says_what_is_skipped(checkout: Path, bare: dict[str, str]) -> None:
    done = setup(checkout, "system", bare)
    assert done.returncode == 0 and "tests that need Slurm or containers are skipped" in done.stderr


def test_a_wrong_word_prints_the_usage(checkout: Path) -> None:
    done = setup(checkout, "everything", dict(os.environ))
    assert done.returncode == 2 and "run | test | trackers | system" in done.stdout


def test_make_lists_its_commands(checkout: Path) -> None:
    listed = subprocess.run(
        ["make", "help"], cwd=checkout, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    commands = ("demo", "test", "lint", "image", "bench", "slurm-lab", "test-trackers", "test-vllm", "clean")
    for command in commands:
        assert f"make {command} " in listed, command


def test_no_file_names_a_package_registry_or_this_machine(checkout: Path) -> None:
    hosts = "|".join(("pypi" + r"\.org", "files" + r"\.pythonhosted", "registry" + r"\.npmjs", "deb" + r"\.debian"))
    command = ["git", "grep", "-nIE", f"({hosts}|/wor[k]/main)", "--", ":!LICENSE"]
    found = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60, check=False)
    assert found.stdout == ""
