"""deepspeed.json with experts that ranks split: what is refused, and that AutoEP still needs our help."""

# ruff: noqa: E501 - tables, one case a line
from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_job.errors import JobError
from qwen_job.run.config import TrainConfig
from qwen_job.train.deepspeed_config import resolve
from tests.train import tiny

pytestmark = pytest.mark.train
pytest.importorskip("deepspeed")


def resolved(folder: Path, block: Any, stage: int = 2) -> dict[str, Any]:
    """Return deepspeed.json with this block about experts, as two ranks read it."""
    train, deepspeed = tiny.settings(folder / "run", stage)
    found: dict[str, Any] = resolve(
        TrainConfig.model_validate(train), {**deepspeed, "expert_parallel": block}, "deepspeed.json"
    )[0]
    return found


@pytest.mark.parametrize(
    ("block", "stage", "message"),
    [
        ({"enabled": True, "autoep_size": 3}, 2, "expert_parallel.autoep_size: 3 does not divide 2 ranks; write one that does"),
        ({"enabled": True, "autoep_size": 2}, 0, "expert_parallel.autoep_size: needs ZeRO: stage 0 clips gradients by a norm"),
        ({"enabled": True, "autoep_size": 0}, 2, "expert_parallel: autoep_size: expected a positive whole number, found 0"),
        ({"enabled": True, "autoep_size": "2"}, 2, "expert_parallel: autoep_size: expected a positive whole number, found '2'"),
        ({"enabled": True, "autoep_size": 2, "top_k": 1}, 2, "expert_parallel: top_k: is not offered"),
        ([2], 2, "expert_parallel: expected fields, not [2]"),
    ],
)  # fmt: skip
def test_blocks_that_cannot_be(tmp_path: Path, block: Any, stage: int, message: str) -> None:
    with pytest.raises(JobError) as caught:
        resolved(tmp_path, block, stage)
    assert message in str(caught.value)


@pytest.mark.parametrize("block", [{"enabled": False, "autoep_size": 2}, {"enabled": True}, {}])
def test_a_block_that_splits_nothing_is_dropped(tmp_path: Path, block: dict[str, Any]) -> None:
    assert "expert_parallel" not in resolved(tmp_path, block)


@pytest.mark.parametrize(
    ("kind", "experts", "message"),
    [("qwen3_moe", 3, "2 does not divide the model's 3 experts"), ("qwen3", 0, "qwen3 has no experts")],
)
def test_models_that_cannot_be(kind: str, experts: int, message: str) -> None:
    from qwen_job.train.expert_parallel import expert_settings

    text = SimpleNamespace(model_type=kind, num_experts=experts)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    with pytest.raises(JobError, match=message):
        expert_settings(model, {"expert_parallel": {"enabled": True, "autoep_size": 2}})


def test_options_of_communication_reach_autoep() -> None:
    from qwen_job.train.expert_parallel import expert_settings

    text = SimpleNamespace(model_type="qwen2_moe", num_experts=4)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    block = {"enabled": True, "autoep_size": 2, "use_grouped_mm": False}
    assert expert_settings(model, {"expert_parallel": block}) == {**block, "preset_model": "qwen3_moe"}


def test_autoep_still_breaks_on_the_registry_of_transformers() -> None:
    """Remove ``unrecorded`` when this fails: DeepSpeed's call, and a registry that takes it, have met again."""
    from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

    from qwen_job.train.expert_parallel import _BREAKS_ON_REGISTRY

    assert version("deepspeed") in _BREAKS_ON_REGISTRY
    with pytest.raises(TypeError):
        _CAN_RECORD_REGISTRY.get("any class", object())


def test_the_registry_is_hidden_for_a_moment_only() -> None:
    from transformers.utils import output_capturing

    from qwen_job.train.expert_parallel import unrecorded

    before = output_capturing._CAN_RECORD_REGISTRY
    with pytest.raises(ValueError, match="stop"), unrecorded():
        assert output_capturing._CAN_RECORD_REGISTRY is None
        raise ValueError("stop")
    assert output_capturing._CAN_RECORD_REGISTRY is before


def test_the_registry_is_left_alone_under_another_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import output_capturing

    from qwen_job.train import expert_parallel

    monkeypatch.setattr(expert_parallel, "_BREAKS_ON_REGISTRY", ("0.0",))
    with expert_parallel.unrecorded():
        assert output_capturing._CAN_RECORD_REGISTRY is not None
