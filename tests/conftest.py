"""What all tests share: a quiet environment, the Slurm lab, and the rule about skipped tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.slurmlab import Lab, missing
from tests.support import optional
from tests.support.taught import taught as taught
from tests.support.templated import taught_tools as taught_tools

CI = os.environ.get("CI", "").lower() in ("1", "true")
_OF_A_JOB = ("SLURM_", "SBATCH_", "PET_", "QWEN_JOB_", "RANK", "WORLD_SIZE", "LOCAL_RANK")
_skipped: dict[str, str] = {}

# On CI the same examples every time: a red run must be about the change, not about the dice. CI decides nothing else.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if CI else "default")


def pytest_configure() -> None:
    """Leave nothing of a surrounding job, or of the network, in what the tests start."""
    for name in list(os.environ):
        # PYTHON: of make, which hands it on.
        if (name.startswith(_OF_A_JOB) and name not in ("QWEN_JOB_CRDS", optional.VARIABLE)) or name == "PYTHON":
            del os.environ[name]
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what runs only when asked for, and put files with slow tests first: side by side, all end together."""
    _leave_out(config, items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def _leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect broken clusters, what needs a GPU, the real trackers and vLLM, unless ``-m`` asks for them."""
    asked = str(config.getoption("markexpr"))
    unasked = [marker for marker in ("chaos", "gpu", "trackers", "vllm") if marker not in asked]
    left_out = [item for item in items if any(map(item.get_closest_marker, unasked))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Skip the modules that import a package of the training stack, where it is not installed."""
    with optional.missing_packages_skip():
        return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember skipped tests."""
    if report.skipped and not hasattr(report, "wasxfail"):
        _remember(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Remember skipped modules."""
    if report.skipped:
        _remember(report)


def _remember(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    _skipped[report.nodeid] = reason.removeprefix("Skipped: ")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where QWEN_JOB_NO_SKIPS names what a skipped test needs."""
    if any(map(optional.forbidden, _skipped.values())) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Report what was skipped, last of all: each need, and every test that may not be skipped."""
    needs = {reason.removeprefix("needs ").partition(":")[0] for reason in _skipped.values()}
    terminalreporter.line(f"skipped for lack of: {', '.join(sorted(needs)) or 'nothing'}")
    for place, reason in _skipped.items():
        if optional.forbidden(reason):
            terminalreporter.line(f"must not be skipped ({optional.VARIABLE}): {place}: {reason}", red=True)


@pytest.fixture(scope="session")
def make_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Lab]]:
    """Return a function that brings up a Slurm lab, with the arguments of Lab; all end with the session."""
    with ExitStack() as labs:

        def make(nodes: int = 2, **options: Any) -> Lab:
            if problem := missing(ssh=options.get("ssh", False)):
                optional.skip("slurm", problem)
            shared = [tmp_path_factory.getbasetemp(), *options.pop("shared", [])]
            return labs.enter_context(Lab(nodes, shared=shared, **options))

        yield make


@pytest.fixture(scope="session")
def slurm(make_slurm: Callable[..., Lab]) -> Lab:
    """Return a Slurm cluster of two nodes that all tests of the session share; leave it as it was."""
    return make_slurm(2)


@pytest.fixture(scope="session")
def checkout() -> Path:
    """Return the root of this checkout."""
    return Path(__file__).resolve().parents[1]
