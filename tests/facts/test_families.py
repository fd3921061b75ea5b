"""The table of families: what is trained, from which part of a folder's config, and what is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_job.errors import ModelError
from qwen_job.facts.config_fields import refused_fields, unknown_fields
from qwen_job.facts.families import FAMILIES, LINEAR, family_of, layer_kinds, text_config
from qwen_job.facts.weights import count_parameters, expected_shapes
from tests.support.tiny_models import TINY

HYBRID = TINY["qwen3_5_text"]
WHOLE = {"model_type": "qwen3_5", "text_config": HYBRID, "tie_word_embeddings": False}
# What the hubs' config.json say, from the published table of sizes.
PUBLISHED = {
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_value_head_dim": 128,
    "model_type": "qwen3_5_text",
    "vocab_size": 248320,
}
SIZES = {  # hidden, feed-forward, layers, heads, key-value heads, linear value heads, tied, parameters
    "0.8B": (1024, 3584, 24, 8, 2, 16, True, 752_393_024),
    "2B": (2048, 6144, 24, 8, 2, 16, True, 1_881_825_088),
    "4B": (2560, 9216, 32, 16, 4, 32, True, 4_205_751_296),
    "9B": (4096, 12288, 32, 16, 4, 32, False, 8_953_803_264),
    "27B": (5120, 17408, 64, 24, 4, 48, False, 26_895_998_464),
}


@pytest.mark.parametrize("size", SIZES)
def test_the_parameters_of_published_sizes_are_exact(size: str) -> None:
    hidden, feed_forward, layers, heads, kv_heads, value_heads, tied, parameters = SIZES[size]
    config: dict[str, object] = {
        **PUBLISHED,
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "linear_num_value_heads": value_heads,
        "tie_word_embeddings": tied,
    }
    assert count_parameters(expected_shapes(config)) == parameters


@pytest.mark.parametrize("kind", [None, 7, "gemma3", "qwen4_exp", "qwen3_next", "qwen3_vl"])
def test_another_type_is_refused_with_what_is_trained(kind: object) -> None:
    with pytest.raises(ModelError, match=r"model_type: .* is not supported; use .*qwen3_5_text") as refused:
        family_of({"model_type": kind})
    assert repr(kind) in str(refused.value)


def test_flash_next_is_refused_by_the_name_that_users_know() -> None:
    with pytest.raises(ModelError, match=r"Qwen3\.8-Flash-Next"):
        family_of({"model_type": "qwen4_exp"})


def test_the_text_model_of_a_vision_language_folder_is_described_by_its_part() -> None:
    text = text_config(WHOLE)
    assert (text["model_type"], text["architectures"]) == ("qwen3_5_text", ["Qwen3_5ForCausalLM"])
    assert expected_shapes(text) == expected_shapes(HYBRID)


@pytest.mark.parametrize("outer", [True, None])
def test_a_head_that_only_the_whole_config_ties_is_tied(outer: bool | None) -> None:
    text = {key: value for key, value in HYBRID.items() if key != "tie_word_embeddings"}
    shapes = expected_shapes(text_config({**WHOLE, "text_config": text, "tie_word_embeddings": outer}))
    assert ("lm_head.weight" in shapes) is not outer


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"text_config": None}, "text_config: is missing"),
        ({"text_config": {**HYBRID, "model_type": "qwen3"}}, r"text_config.model_type: 'qwen3' contradicts"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: True contradicts"),
    ],
)
def test_a_vision_language_config_that_contradicts_itself_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        text_config({**WHOLE, **changes})


def test_layers_without_a_list_follow_the_interval() -> None:
    config = {**HYBRID, "layer_types": None, "num_hidden_layers": 6, "full_attention_interval": 3}
    assert [kind == LINEAR for kind in layer_kinds(config)] == [True, True, False] * 2


@pytest.mark.parametrize("kinds", [["mamba"] * 4, ["linear_attention"], "linear_attention", [["linear_attention"]] * 4])
def test_an_unknown_kind_of_layer_is_refused(kinds: object) -> None:
    with pytest.raises(ModelError, match="layer_types"):
        layer_kinds({**HYBRID, "layer_types": kinds})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attn_output_gate": False}, "attn_output_gate"),
        ({"mamba_ssm_dtype": "bfloat16"}, "mamba_ssm_dtype"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0, "rope_parameters": {"rope_theta": 1e4}}, "partial_rotary_factor"),
        ({"logit_scale": 0.5}, "logit_scale"),
    ],
)
def test_fields_that_a_hybrid_would_ignore_are_refused(changes: dict[str, Any], named: str) -> None:
    refused = refused_fields({**HYBRID, **changes})
    assert refused and named in refused[0], refused


def test_the_fields_of_a_published_hybrid_are_all_known() -> None:
    more = {"mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False, "full_attention_interval": 4}
    config = {key: value for key, value in HYBRID.items() if key not in ("name", "architecture", "source")}
    assert refused_fields({**config, **more}) == unknown_fields({**config, **more}) == []


@pytest.mark.parametrize(
    "sizes", [{"linear_num_value_heads": 3}, {"linear_num_key_heads": 0}, {"linear_conv_kernel_dim": "4"}]
)
def test_sizes_of_linear_attention_that_cannot_be_are_refused(sizes: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=next(iter(sizes))):
        expected_shapes({**HYBRID, **sizes})


def test_every_whole_type_has_its_text_type() -> None:
    for family in FAMILIES.values():
        assert FAMILIES[family.text_type].architecture == family.architecture
