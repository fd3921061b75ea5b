"""Every family learns the same packed, sharded and over several ranks as unpacked in one process.

Ten seconds of a process for each number of ranks; every way of training is a test.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_models import write_folder
from tests.train import tiny

pytestmark = [pytest.mark.train, pytest.mark.slow]

torch = pytest.importorskip("torch")
from tests.train.family_worker import STEPS, WAYS  # noqa: E402

KINDS = ["qwen3_5"]


@pytest.fixture(scope="module", params=KINDS)
def losses(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[Any, Any]]:
    """Return the losses of every way, by the number of ranks."""
    home = tmp_path_factory.mktemp("family")
    folder = write_folder(home / "model", request.param, initializer_range=0.1)
    found = {}
    for ranks in (1, 2):
        output: Path = home / f"{ranks}.pt"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        command += ["-m", "tests.train.family_worker", str(folder), str(output)]
        done = subprocess.run(command, env=tiny.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        found[ranks] = torch.load(output)
    return found


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_three_steps_are_those_of_one_unpacked_process(
    losses: dict[int, dict[Any, Any]], ranks: int, way: tuple[int, bool]
) -> None:
    expected = losses[1]["alone"]
    assert len(expected) == STEPS and expected[2] < expected[0] - 0.1
    assert losses[ranks][way] == pytest.approx(expected, abs=5e-6)
