"""Our passes over the gradients give what DeepSpeed's own give, on one rank and on several: the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.train import tiny

pytestmark = [pytest.mark.train, pytest.mark.slow]

torch = pytest.importorskip("torch")
from qwen_job.train.deepspeed_engine import averages_gradients  # noqa: E402
from qwen_job.train.gradients import squared_norm  # noqa: E402
from tests.train.zero_worker import CLIPPED, MICRO_BATCHES, WAYS  # noqa: E402


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """Return what both kinds of optimizer came to, in every way."""
    output: Path = tmp_path_factory.mktemp("zero") / "results.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(request.param)]
    command += ["-m", "tests.train.zero_worker", str(output)]
    done = subprocess.run(command, env=tiny.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[Any, Any] = torch.load(output)
    return found


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_weights_and_optimizer_state_are_those_of_deepspeed(results: dict[Any, Any], way: tuple[Any, ...]) -> None:
    ours, theirs = results["lean"][way], results["plain"][way]
    # The norms differ in the last digit, and so does what is clipped; a bfloat16 weight may then round the other way.
    exact = way[2] != CLIPPED
    torch.testing.assert_close(ours["states"], theirs["states"], rtol=0 if exact else 1e-6, atol=0 if exact else 1e-9)
    torch.testing.assert_close(ours["weights"], theirs["weights"], rtol=0 if exact else 2**-7, atol=0)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_norms_and_left_out_steps_are_those_of_deepspeed(results: dict[Any, Any], way: tuple[Any, ...]) -> None:
    ours, theirs = results["lean"][way], results["plain"][way]
    assert ours["norms"] == pytest.approx(theirs["norms"], rel=1e-6)
    assert ours["applied"] == theirs["applied"] == [*[True] * (len(MICRO_BATCHES) - 1), False]


def test_a_lone_rank_leaves_gradients_to_autograd(results: dict[Any, Any]) -> None:
    way = WAYS[0]
    assert results["plain"][way]["hooks"] == 4
    assert results["lean"][way]["hooks"] == (0 if results["ranks"] == 1 else 4)


@pytest.mark.parametrize(
    ("stage", "of_engine", "of_optimizer", "averages"),
    [
        (0, True, {}, True),
        (0, False, {}, False),  # gradient_allreduce_op: sum
        (2, True, {"gradient_average": False}, False),
        (2, True, {"gradient_average": True}, True),
        (3, False, {}, True),
    ],
)
def test_the_loss_is_divided_for_what_deepspeed_does_with_gradients(
    stage: int, of_engine: bool, of_optimizer: dict[str, bool], averages: bool
) -> None:
    engine = SimpleNamespace(
        optimizer=SimpleNamespace(**of_optimizer),
        gradient_average=of_engine,
        zero_optimization_partition_weights=lambda: stage == 3,
    )
    assert averages_gradients(engine) is averages


def test_the_norm_of_many_gradients_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    slopes = [torch.randn(size, generator=generator) * 1e-3 for size in (3_000_000, 5, 700)]
    exact = torch.cat(slopes).double().square().sum()
    assert float(squared_norm(slopes) / exact) == pytest.approx(1, abs=1e-6)
