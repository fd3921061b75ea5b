"""One worker process for each module of cases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.harness import Box


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    """A worker process for the cases of a module."""
    with Box() as made:
        yield made
