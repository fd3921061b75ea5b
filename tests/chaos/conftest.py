"""The cluster of the chaos tests, its small disk, the undisturbed run, and the table at the end."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.run import Outcome, Run
from tests.slurmlab import Lab, missing

RESULTS: dict[str, Outcome | str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note a fault that was not overcome."""
    if report.failed and "tests/chaos/" in report.nodeid:
        RESULTS.setdefault(report.nodeid.partition("::test_")[2].replace("_", " "), "**failed**")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of BENCHMARKS.md."""
    if not RESULTS:
        return
    terminalreporter.section("faults")
    terminalreporter.line("| Fault | Weights | Starts | Steps trained again | Wall time | Effective |")
    terminalreporter.line("|---|---|---:|---:|---:|---:|")
    for name, result in RESULTS.items():
        cells = [name, result, "–", "–", "–", "–"]
        if isinstance(result, Outcome):
            same = [str(result.attempts), str(result.lost_steps), f"{result.seconds:.0f} s", result.effective]
            cells = [name, "equal", *same]
        terminalreporter.line(f"| {' | '.join(str(cell) for cell in cells)} |")


@pytest.fixture(scope="session")
def disk() -> Iterator[Path]:
    """A file system of its own, which all hosts of the lab see."""
    if problem := missing():
        pytest.skip(problem)
    # Not below /tmp, which is each host's own.
    folder = Path(tempfile.mkdtemp(prefix="qwen-job-chaos-", dir="/var/tmp"))
    mount(["-t", "tmpfs", "-o", "size=4g", "chaos", str(folder)])
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def mount(words: list[str]) -> None:
    """Mount something on this machine."""
    subprocess.run(["mount", *words], check=True, timeout=30)


@pytest.fixture(scope="session")
def lab(disk: Path) -> Iterator[Lab]:  # noqa: ARG001 (the order matters)
    """Two nodes, made after the disk was mounted."""
    with Lab(2) as up:
        yield up


@pytest.fixture(scope="session")
def calm(lab: Lab, disk: Path) -> Run:
    """The undisturbed run that all others are held against."""
    run = Run(lab, disk / "calm").submit()
    assert run.wait_end() == "COMPLETED", run.output[-3000:]
    RESULTS["none"] = run.judge(run)
    return run


@pytest.fixture
def run(request: pytest.FixtureRequest, lab: Lab, disk: Path) -> Iterator[Run]:
    """A run that has been submitted; its folder goes with the test, to leave the disk to the next."""
    name = request.node.name.removeprefix("test_")
    marker = request.node.get_closest_marker("settings")
    one = Run(lab, disk / name, **(marker.kwargs if marker else {})).submit()
    yield one
    if one.state() not in ("COMPLETED", "FAILED"):
        lab.on("ctl", ["scancel", str(one.job)], check=False)
        one.wait_end(60)
    shutil.rmtree(one.folder, ignore_errors=True)
