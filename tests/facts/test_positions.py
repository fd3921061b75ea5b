"""The positions of a model, and YaRN as Qwen's cards write it."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_job.errors import ModelError
from qwen_job.facts.positions import base_length, factor_for, own_length, with_yarn

QWEN3: dict[str, Any] = {"max_position_embeddings": 40960, "rope_theta": 1000000}
CARD = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def test_the_length_of_a_card_follows_from_its_factor() -> None:
    assert own_length(QWEN3) == 40960
    assert own_length({**QWEN3, "rope_scaling": CARD}) == own_length({**QWEN3, "rope_parameters": CARD}) == 131072
    assert own_length({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0}}) == 131072
    # A config whose own length is that after the scaling.
    assert own_length({"max_position_embeddings": 131072, "rope_scaling": CARD}) == 131072
    assert own_length({}) is None


def test_yarn_is_what_the_cards_of_qwen3_and_qwen2_5_add() -> None:
    assert with_yarn(QWEN3, 4, None, "x") == {**QWEN3, "rope_parameters": {"rope_theta": 1000000, **CARD}}
    older = {"max_position_embeddings": 32768, "rope_theta": 1e6, "rope_scaling": None}
    assert with_yarn(older, 4, None, "x")["rope_parameters"] == {"rope_theta": 1e6, **CARD}


def test_what_a_hybrid_says_of_its_positions_is_kept() -> None:
    hybrid = {"max_position_embeddings": 262144, "rope_parameters": {"rope_theta": 1e7, "partial_rotary_factor": 0.25,
              "mrope_section": [11, 11, 10], "rope_type": "default"}}  # fmt: skip
    found: Any = with_yarn(hybrid, 2, None, "x")["rope_parameters"]
    assert found == {**hybrid["rope_parameters"], **CARD, "factor": 2.0, "original_max_position_embeddings": 262144}


def test_another_scaling_of_the_model_is_refused_and_the_same_is_not() -> None:
    scaled = {**QWEN3, "rope_scaling": CARD}
    assert with_yarn(scaled, 4, None, "x")["rope_parameters"] == {"rope_theta": 1000000, **CARD}
    with pytest.raises(ModelError, match=r"model.rope_scaling: x/config.json already has yarn with factor 4.0; remove"):
        with_yarn(scaled, 2, None, "x/config.json")


def test_the_factor_is_the_next_whole_one() -> None:
    assert [factor_for(length, base_length(40960)) for length in (40000, 65536, 65537, 131072)] == [2, 2, 3, 4]
