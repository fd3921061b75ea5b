"""A run goes on when its number of ranks changes: 4, then 2, then 4."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.train import tiny

pytestmark = [pytest.mark.train, pytest.mark.slow]


CHANGES = {
    "world_size": 4,
    "training__gradient_accumulation_steps": 1,
    "training__save_steps": 3,
    "training__max_steps": 9,
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of four ranks that nothing disturbs; every ZeRO stage computes the same."""
    calm = tiny.write_run(tmp_path_factory.mktemp("calm") / "run", 2, **CHANGES)
    code, output = tiny.run(calm, 4)
    assert code == 0, output
    return [line["loss"] for line in tiny.metrics(calm.parent, "step")]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_four_then_two_then_four_ranks_learn_what_four_alone_do(
    tmp_path: Path, expected: list[float], stage: int
) -> None:
    # The folder has what is a pattern elsewhere.
    moved = tiny.write_run(tmp_path / "moved [1]*?", stage, **CHANGES)
    settings = yaml.safe_load(moved.read_text())
    for last, ranks in ((3, 4), (6, 2), (10, 4)):
        # Ends there by a stop request: the schedule still knows of nine steps, and the last run takes them all.
        code, output = tiny.run(moved, ranks, change=f"stop {last}")
        assert code in (0, 1, 160), output
    assert settings["world_size"] == 4
    losses = {line["step"]: line["loss"] for line in tiny.metrics(moved.parent, "step")}
    assert sorted(losses) == list(range(1, 10))
    assert [losses[step] for step in sorted(losses)] == pytest.approx(expected, abs=2e-5)
    starts = [(line["world_size"], line["resumed_from"]) for line in tiny.metrics(moved.parent, "start")]
    assert starts == [(4, None), (2, 3), (4, 6)]
    assert "converting it" in output and (moved.parent / "done.json").exists(), output[-3500:]
