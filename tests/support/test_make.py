"""The Makefile and its scripts say what is wrong on machines that lack something."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import optional


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
    assert named.returncode == 1 and "PYTHON=python2 is not a Python" in named.stderr


def test_without_apt_the_setup_says_what_is_skipped(checkout: Path, bare: dict[str, str]) -> None:
    done = setup(checkout, "system", bare)
    assert done.returncode == 0 and "need Slurm, containers or a browser are skipped" in done.stderr


def test_a_wrong_word_prints_the_usage(checkout: Path) -> None:
    done = setup(checkout, "everything", dict(os.environ))
    assert done.returncode == 2 and "check | run | test" in done.stdout


def test_make_lists_its_commands(checkout: Path) -> None:
    listed = subprocess.run(
        ["make", "help"], cwd=checkout, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    commands = ("demo", "check", "test", "lint", "image", "bench", "slurm-lab", "test-trackers", "test-vllm", "clean")
    for command in commands:
        assert f"make {command} " in listed, command


def test_no_file_names_a_package_registry_or_this_machine(checkout: Path) -> None:
    hosts = "|".join(("pypi" + r"\.org", "files" + r"\.pythonhosted", "registry" + r"\.npmjs", "deb" + r"\.debian"))
    command = ["git", "grep", "-nIE", f"({hosts}|/wor[k]/main)", "--", ":!LICENSE"]
    found = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60, check=False)
    assert found.stdout == ""


@pytest.fixture
def loop(checkout: Path, tmp_path: Path) -> Path:
    """A folder with check.sh whose set-up, lint and Python only note that they ran, and end with $LINT and $TESTS."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv-x" / "bin").mkdir(parents=True)
    shutil.copy(checkout / "scripts" / "check.sh", tmp_path / "scripts")
    stubs = {
        "scripts/setup.sh": "echo .venv-x",
        "scripts/lint.sh": 'echo "lint $*" >>log; exit "$LINT"',
        ".venv-x/bin/python": 'echo "python $*" >>log; exit "$TESTS"',
    }
    for name, line in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def check(folder: Path, *words: str, lint: int = 0, tests: int = 0) -> tuple[int, list[str]]:
    """Return the exit code of check.sh, and what it ran."""
    environment = {**os.environ, "LINT": str(lint), "TESTS": str(tests)}
    command = ["bash", "scripts/check.sh", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=60, check=False)
    return done.returncode, (folder / "log").read_text().splitlines()


def test_make_check_fails_with_a_failing_test(loop: Path) -> None:
    code, ran = check(loop, tests=1)
    assert code == 1
    assert ran[0] == "lint .venv-x"
    assert ran[1].startswith("python -m pytest")


def test_make_check_fails_with_a_lint_error_before_any_test(loop: Path) -> None:
    assert check(loop, lint=1) == (1, ["lint .venv-x"])


def test_make_check_of_a_part_runs_only_those_tests(loop: Path) -> None:
    code, (ran,) = check(loop, "tests/job")
    assert code == 0
    assert ran.endswith(" tests/job")


@pytest.fixture
def everything(checkout: Path, tmp_path: Path) -> Path:
    """A folder with test.sh, whose Python and image only note what they were asked for; some fail, by $FAILS."""
    (tmp_path / "scripts" / "image").mkdir(parents=True)
    shutil.copy(checkout / "scripts" / "test.sh", tmp_path / "scripts")
    note = 'echo "${0##*/} $*" >>log; case "$0 $*" in *"${FAILS:-nothing}"*) exit 3 ;; esac'
    for name in ("scripts/image/test", "scripts/coverage.sh", "python"):
        (tmp_path / name).write_text(f"#!/bin/bash\n{note}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("fails", ["-n 2", "tests/e2e tests/slurmlab --d", "test build", "test try", "coverage"])
def test_make_test_fails_with_any_of_its_parts(everything: Path, fails: str) -> None:
    environment = {**os.environ, "PATH": f"{everything}:{os.environ['PATH']}", "FAILS": fails}
    command = ["bash", "scripts/test.sh"]
    done = subprocess.run(command, cwd=everything, env=environment, capture_output=True, timeout=60, check=False)
    ran = (everything / "log").read_text()
    assert done.returncode == 3, done.stderr
    assert "test build" in ran and "tests/e2e tests/slurmlab" in ran and "-n 2" in ran
    assert ("test try" in ran) == (fails != "test build"), "an image that could not be built is not tried"
    (everything / "log").unlink()
    done = subprocess.run(command, cwd=everything, env=environment | {"FAILS": ""}, capture_output=True, timeout=60)
    assert done.returncode == 0 and (everything / "log").read_text().endswith("coverage.sh \n"), done.stderr


def test_the_environment_of_make_check_has_no_training_stack(checkout: Path) -> None:
    text = (checkout / "pyproject.toml").read_text(encoding="utf-8")
    extra = text.partition("\ncheck = [")[2].partition("]")[0]
    assert "pytest>=" in extra
    assert not [package for package in optional.PACKAGES["training"].split() if f'"{package}' in extra]


def test_the_launcher_is_imported_without_the_training_stack(checkout: Path) -> None:
    code = """
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split()))
for room in ("facts", "job", "run", "plan", "render", "launch", "cli"):
    package = importlib.import_module(f"qwen_job.{room}")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
        print(module.name)
"""
    command = [sys.executable, "-c", code, optional.PACKAGES["training"]]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") > 80
