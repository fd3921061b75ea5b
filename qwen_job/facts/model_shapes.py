"""Model shapes: what memory and speed depend on, from facts/models or from a config.json.

Nothing is guessed: an unknown model is an error that suggests near names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qwen_job.errors import ModelError
from qwen_job.facts import fact
from qwen_job.facts.config_fields import check_fields, dropout_of, longest_row
from qwen_job.facts.lookup import find, read_facts
from qwen_job.facts.model_files import read_config, read_json
from qwen_job.facts.weights import LIMITS, QUANTIZED_KEYS, shown


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a dense decoder that memory and speed depend on.

    ``intermediate_size`` is the real width of the feed-forward layer (half of what Qwen-1 configs say).
    ``attention_bias``: biases on q, k and v (Qwen-1 to Qwen2.5). ``qk_norm``: an RMSNorm per head (Qwen3).
    ``longest_row``: tokens up to which positions are encoded the same in every batch; None: any number.
    """

    name: str
    architecture: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    attention_bias: bool
    qk_norm: bool
    attention_dropout: float = 0.0
    longest_row: int | None = None

    @property
    def query_size(self) -> int:
        """Width of all query heads together; differs from hidden_size in Qwen3."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all key heads together, which is that of all value heads."""
        return self.num_key_value_heads * self.head_dim

    @cached_property
    def layer_matmul_parameters(self) -> int:
        """Weights of one decoder layer that take part in a matrix product."""
        attention = 2 * self.hidden_size * (self.query_size + self.key_value_size)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @cached_property
    def layer_parameters(self) -> int:
        """All parameters of one decoder layer, with biases and norms."""
        biases = self.query_size + 2 * self.key_value_size if self.attention_bias else 0
        if self.attention_bias and self.qk_norm:  # Qwen3's flag covers the output projection as well
            biases += self.hidden_size
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        return self.layer_matmul_parameters + biases + norms

    @cached_property
    def num_parameters(self) -> int:
        """Exact number of trained parameters; a tied head counts once."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * self.layer_parameters + embeddings + self.hidden_size

    @cached_property
    def num_matmul_parameters(self) -> int:
        """Weights that a token is multiplied with: layers and head (tied or not), not the embedding."""
        return self.num_hidden_layers * self.layer_matmul_parameters + self.vocab_size * self.hidden_size


def load_model_shape(name_or_path: str | Path) -> ModelShape:
    """Return the shape of a model that qwen_job/facts/models knows, or of a local folder with a config.json.

    Raises:
        UnknownName: no file has the name.
        ModelError: the config cannot be read, lacks a field or is not a dense decoder.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return model_shape_from_config(read_config(folder), str(name_or_path), str(folder / "config.json"))
    if folder.suffix == ".json" and folder.is_file():
        return model_shape_from_config(read_json(folder), str(name_or_path), str(folder))
    path = find(str(name_or_path), [fact("models")], "model")
    config = read_facts(path)
    return model_shape_from_config(config, str(config.get("name", name_or_path)), str(path))


def model_shape_from_config(config: Mapping[str, Any], name: str, where: str = "") -> ModelShape:
    """Build a ModelShape from a Hugging Face config.json (Qwen-1, Qwen2, Qwen3 or a later dense Qwen).

    ``where`` is the file that errors name.

    Raises:
        ModelError: a field is missing, impossible or ignored by training, or the model is not a dense decoder.
    """
    where = where or name
    model_type = str(config.get("model_type", "")).lower()
    _refuse_if_not_dense(config, model_type, where)
    check_fields(config, where)
    need = _Fields(config, where)
    heads = need("num_attention_heads")
    hidden = need("hidden_size")
    qwen1 = model_type == "qwen"
    generation = re.match(r"qwen(\d+)", model_type)
    qk_norm = bool(config.get("qk_norm", generation is not None and int(generation[1]) >= 3))
    head_key = "kv_channels" if qwen1 else "head_dim"
    shape = ModelShape(
        name=name,
        architecture=_architecture(config, model_type),
        hidden_size=hidden,
        num_hidden_layers=need("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=heads if qwen1 else need("num_key_value_heads", heads),
        head_dim=need(head_key) if config.get(head_key) is not None else hidden // heads,
        intermediate_size=need("intermediate_size") // (2 if qwen1 else 1),
        vocab_size=need("vocab_size"),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        max_position_embeddings=need("seq_length") if qwen1 else need("max_position_embeddings"),
        attention_bias=qwen1 or bool(config.get("attention_bias", model_type == "qwen2")),
        qk_norm=qk_norm,
        attention_dropout=dropout_of(config),
        longest_row=longest_row(config),
    )
    if shape.num_attention_heads % shape.num_key_value_heads:
        raise ModelError(
            f"{where}: num_key_value_heads: {shape.num_key_value_heads} does not divide {heads} query heads"
        )
    return shape


class _Fields:
    """Read positive whole numbers from a config; errors name the file and the field."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config, self.where = config, where

    def __call__(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key, default)
        if value is None:
            raise ModelError(f"{self.where}: {key}: missing; use the config.json that came with the weights")
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ModelError(f"{self.where}: {key}: must be a whole number above 0, not {shown(value)}")
        if value > LIMITS.get(key, value):
            raise ModelError(
                f"{self.where}: {key}: {shown(value)} is more than any model has (at most {LIMITS[key]:,})"
            )
        return value


def _refuse_if_not_dense(config: Mapping[str, Any], model_type: str, where: str) -> None:
    experts = [key for key in ("num_experts", "num_local_experts", "n_routed_experts") if config.get(key)]
    if experts or "moe" in model_type:
        raise ModelError(f"{where}: {(experts or ['model_type'])[0]}: a mixture of experts; use a dense Qwen model")
    if "hidden_size" not in config and isinstance(config.get("text_config"), Mapping):
        raise ModelError(f"{where}: text_config: a multimodal model; use a text model")
    for key in QUANTIZED_KEYS:
        if config.get(key):
            raise ModelError(f"{where}: {key}: the model is quantized; use the full-precision model")
    layers = config.get("layer_types") or ()
    if not isinstance(layers, (list, tuple)) or any(
        kind not in ("full_attention", "sliding_attention") for kind in layers
    ):
        raise ModelError(f"{where}: layer_types: has layers other than attention; use a dense attention model")


def _architecture(config: Mapping[str, Any], model_type: str) -> str:
    listed = config.get("architectures") or [model_type]
    if not isinstance(listed, list):
        listed = [listed]
    return str(config.get("architecture") or listed[0])
