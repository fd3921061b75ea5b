"""The committed renders are what the code renders now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("golden", Path(__file__).parents[2] / "scripts" / "golden.py")
assert _SPEC and _SPEC.loader
golden = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(golden)
REFRESH = "look at the difference; if it is meant: make golden"
EXPECTED: dict[Path, str] = golden.expected()


@pytest.mark.parametrize("path", EXPECTED, ids=lambda path: str(path.relative_to(golden.ROOT)))
def test_a_kept_file_is_what_the_code_makes_now(path: Path) -> None:
    assert path.read_text("utf-8").splitlines() == EXPECTED[path].splitlines(), REFRESH
    assert path.read_bytes() == EXPECTED[path].encode(), REFRESH


def test_nothing_kept_is_left_over() -> None:
    assert golden.main(["--check"]) == 0, REFRESH
