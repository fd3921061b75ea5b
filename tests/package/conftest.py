"""The wheel and the sdist, built once for every test of the package, as a release builds them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

EPOCH = "1790000000"


class Built(NamedTuple):
    """What one build wrote."""

    wheel: Path
    sdist: Path


def build(source: Path, folder: Path) -> Built:
    """Build both from a checkout: the sdist, and the wheel from that sdist (2 s)."""
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source]
    environ = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return Built(next(folder.glob("*.whl")), next(folder.glob("*.tar.gz")))


@pytest.fixture(scope="package")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Return the wheel and the sdist of this checkout."""
    return build(checkout, tmp_path_factory.mktemp("dist"))
