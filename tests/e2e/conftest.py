"""The demo, run once for every test that needs a finished run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e.steps import CHECKOUT, environment


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run scripts/demo.sh, which is what ``make demo`` runs, and return the run's folder and what was printed."""
    run = tmp_path_factory.mktemp("demo") / "demo run"
    done = subprocess.run(
        [CHECKOUT / "scripts" / "demo.sh", run],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return run, done.stdout
