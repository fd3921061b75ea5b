"""What may be skipped, and where."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import optional

SLURM = "needs slurm: the Slurm lab needs root"


@pytest.mark.parametrize(
    ("named", "reason", "expected"),
    [
        ("", SLURM, False),
        ("training", SLURM, False),
        ("training,slurm", SLURM, True),
        ("all", SLURM, True),
        ("training", "no idea why", True),
        ("", "no idea why", False),
    ],
)
def test_a_skip_is_forbidden_where_its_need_is_named(named: str, reason: str, expected: bool) -> None:
    assert optional.forbidden(reason, named) is expected


def test_an_unknown_need_is_an_error() -> None:
    with pytest.raises(pytest.UsageError, match="unknown: slrum"):
        optional.forbidden(SLURM, "slrum")


def test_a_missing_package_skips_while_modules_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optional._NEED_OF, "not_there", "training")
    with optional.missing_packages_skip(), pytest.raises(pytest.skip.Exception, match="needs training: not_there"):
        importlib.import_module("not_there")


def test_a_missing_package_is_an_error_in_a_running_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optional._NEED_OF, "not_there", "training")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("not_there")


def test_what_all_tests_share_needs_no_optional_package(checkout: Path) -> None:
    """``make check`` imports it without the training stack."""
    program = f"import sys; sys.modules.update(dict.fromkeys({sorted(optional._NEED_OF)!r})); import tests.conftest"
    done = subprocess.run([sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
