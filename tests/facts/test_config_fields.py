"""Fields of config.json: each is honoured, neutral, or refused by every door."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_job.errors import ModelError
from qwen_job.facts.config_fields import (
    FOREIGN,
    HONOURED,
    NEUTRAL,
    check_fields,
    longest_row,
    refused_fields,
    unknown_fields,
)
from qwen_job.models.qwen1 import qwen2_config

QWEN2: dict[str, Any] = {"model_type": "qwen2", "num_hidden_layers": 2}
SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"logit_scale": 0.0625}, "logit_scale"),
        ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar"),
        ({"embedding_multiplier": 12}, "embedding_multiplier"),
        ({"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"use_qk_norm": True}, "use_qk_norm"),
        ({"model_type": "qwen3", "use_qk_norm": False}, "use_qk_norm"),
        ({"attention_bias": False}, "attention_bias"),
        ({"attention_dropout": 1.5}, "attention_dropout"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, "rope_scaling"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "yarn", "factor": 4.0}}, "factor"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}, "rope_scaling": {"type": "yarn", "factor": 2.0}},
            "rope_scaling.factor",
        ),
        ({"use_sliding_window": True, "sliding_window": None}, "sliding_window"),
        ({**SLIDING, "sliding_window": 0}, "sliding_window"),
        ({**SLIDING, "layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ],
)
def test_what_would_be_ignored_is_refused_by_its_field(fields: dict[str, Any], named: str) -> None:
    refused = refused_fields({**QWEN2, **fields})
    assert refused and refused[0].split(":")[0].endswith(named), refused
    with pytest.raises(ModelError, match=named):
        check_fields({**QWEN2, **fields}, "model/config.json")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        SLIDING,
        {**SLIDING, "layer_types": ["sliding_attention", "full_attention"]},
        {"model_type": "qwen3", "attention_bias": False, "use_qk_norm": True},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}, "attention_dropout": 0.1},
        {"rope_theta": 1000000, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_scaling": None},
        {
            "rope_scaling": {"type": "yarn", "factor": 4},
            "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        },
        {"final_logit_softcapping": None, "logit_scale": 1.0, "mlp_bias": False, "partial_rotary_factor": 1.0},
    ],
)
def test_what_is_honoured_or_neutral_is_accepted(fields: dict[str, Any]) -> None:
    assert refused_fields({**QWEN2, **fields}) == []


def test_frequencies_that_a_batch_decides_have_a_longest_row() -> None:
    assert longest_row({"rope_scaling": {"type": "dynamic", "factor": 2}, "max_position_embeddings": 64}) == 64
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 32}
    assert longest_row({"rope_parameters": rope, "max_position_embeddings": 128}) == 32
    assert longest_row({"rope_scaling": {"type": "yarn"}, "max_position_embeddings": 64}) is None


def test_a_qwen1_config_is_judged_before_it_is_converted() -> None:
    for field, value in (("rotary_pct", 0.25), ("emb_dropout_prob", 0.1), ("no_bias", False)):
        assert refused_fields({"model_type": "qwen", field: value})[0].startswith(f"{field}: ")
        with pytest.raises(ModelError, match=field):
            qwen2_config({"model_type": "qwen", field: value})


@pytest.mark.train
@pytest.mark.parametrize("kind", ["Qwen2Config", "Qwen3Config", "Qwen2MoeConfig", "Qwen3MoeConfig"])
def test_every_field_of_the_installed_transformers_stands_in_the_table(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, kind)().to_dict()
    assert unknown_fields(config) == [] and refused_fields(config) == []
    assert not (HONOURED & NEUTRAL) and not (FOREIGN.keys() & (HONOURED | NEUTRAL))
    assert unknown_fields({"brightness": 3, "_commit_hash": "x"}) == ["brightness"]
