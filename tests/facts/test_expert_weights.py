"""The weights of a mixture of experts follow from its config.json alone, however its files name them."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_job.errors import ModelError
from qwen_job.facts.config_fields import refused_fields
from qwen_job.facts.weights import count_parameters, expected_shapes
from qwen_job.models.config_json import check_config, native_config

# Numbers of Qwen/Qwen3-30B-A3B's config.json; the count is that of transformers' model, built without memory.
QWEN3_30B: dict[str, Any] = {
    "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
    "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "output_router_logits": False, "router_aux_loss_coef": 0.001, "tie_word_embeddings": False,
    "use_sliding_window": False,
}  # fmt: skip
# Of Qwen/Qwen2-57B-A14B-Instruct; counted in the same way.
QWEN2_57B: dict[str, Any] = {
    "model_type": "qwen2_moe", "vocab_size": 151936, "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "num_experts": 64,
    "num_experts_per_tok": 8, "moe_intermediate_size": 2560, "shared_expert_intermediate_size": 20480,
    "norm_topk_prob": False, "decoder_sparse_step": 1, "tie_word_embeddings": False,
}  # fmt: skip
_SMALL = {**QWEN3_30B, "num_hidden_layers": 2, "num_experts": 3, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("config", "count"), [(QWEN3_30B, 30_532_122_624), (QWEN2_57B, 57_408_658_944)], ids=["30B-A3B", "57B-A14B"]
)
def test_published_mixtures_have_their_published_number_of_weights(config: dict[str, Any], count: int) -> None:
    assert count_parameters(expected_shapes(config)) == count
    assert count_parameters(expected_shapes(config, {"model.layers.0.mlp.experts.down_proj"})) == count
    assert refused_fields(config) == []


def test_files_name_each_expert_or_all_of_a_layer() -> None:
    each, fused = expected_shapes(_SMALL), expected_shapes(_SMALL, {"model.layers.1.mlp.experts.gate_up_proj"})
    assert each["model.layers.1.mlp.experts.2.up_proj.weight"] == (768, 2048)
    assert each["model.layers.1.mlp.gate.weight"] == fused["model.layers.1.mlp.gate.weight"] == (3, 2048)
    assert fused["model.layers.1.mlp.experts.gate_up_proj"] == (3, 1536, 2048)
    assert fused["model.layers.1.mlp.experts.down_proj"] == (3, 2048, 768)
    assert not [name for name in fused if ".experts.0." in name]


def test_layers_without_experts_have_one_network() -> None:
    shapes = expected_shapes({**_SMALL, "mlp_only_layers": [0]})
    assert shapes["model.layers.0.mlp.gate_proj.weight"] == (6144, 2048)
    assert "model.layers.1.mlp.gate.weight" in shapes
    assert "model.layers.0.mlp.gate.weight" not in shapes
    sparse = expected_shapes({**_SMALL, "decoder_sparse_step": 2})
    assert "model.layers.0.mlp.up_proj.weight" in sparse and "model.layers.1.mlp.gate.weight" in sparse


def test_the_name_of_transformers_5_for_the_number_of_experts_is_read() -> None:
    config = {key: value for key, value in _SMALL.items() if key != "num_experts"} | {"num_local_experts": 3}
    assert expected_shapes(config) == expected_shapes(_SMALL)
    assert refused_fields(config) == []
    assert native_config(config)["num_experts"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": None}, "num_experts: expected a positive whole number, found None"),
        ({"num_experts": 10**9}, "num_experts: 1000000000 is more than any model has"),
        ({"num_experts_per_tok": 4}, "num_experts_per_tok: 4 of 3 experts"),
        ({"moe_intermediate_size": "768"}, "moe_intermediate_size: expected a positive whole number, found '768'"),
        ({"mlp_only_layers": "none"}, "mlp_only_layers: expected a list of layers' numbers, found 'none'"),
        ({"num_local_experts": 5}, "num_local_experts: 5 contradicts num_experts (3)"),
        ({"router_aux_loss_coef": -1}, "router_aux_loss_coef: expected a number from 0, found -1"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob: expected true or false, found 'yes'"),
    ],
)
def test_a_wrong_field_of_a_mixture_is_named(change: dict[str, Any], message: str) -> None:
    config = {**_SMALL, **change}
    with pytest.raises(ModelError) as refusal:
        check_config(config)
        expected_shapes(config)
    assert message in str(refusal.value)


def test_experts_on_a_dense_model_and_windows_on_a_mixture_are_refused() -> None:
    assert "num_experts: 3 is not part of qwen3" in refused_fields({**_SMALL, "model_type": "qwen3"})[0]
    assert "use_sliding_window: true" in refused_fields({**_SMALL, "use_sliding_window": True, "sliding_window": 4})[0]
