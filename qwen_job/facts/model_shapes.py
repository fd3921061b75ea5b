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
from qwen_job.facts.families import FAMILIES, FULL, LINEAR, SLIDING, layer_kinds, text_config
from qwen_job.facts.lookup import UnknownName, find, read_facts
from qwen_job.facts.model_files import read_config, read_json
from qwen_job.facts.positions import own_length
from qwen_job.facts.weights import LIMITS, QUANTIZED_KEYS, shown
from qwen_job.text import MISSPELT, did_you_mean

HYBRIDS = tuple(kind for kind, family in FAMILIES.items() if family.is_hybrid)
MIXTURES = tuple(kind for kind, family in FAMILIES.items() if family.experts and kind == family.text_type)


@dataclass(frozen=True)
class Experts:
    """The mixture of experts in ``layers`` of the layers; a token passes ``per_token`` of ``count`` experts.

    ``width`` is the feed-forward width of one expert, ``shared_width`` that of the expert that every token passes
    (0: none).
    """

    layers: int
    count: int
    per_token: int
    width: int
    shared_width: int = 0


@dataclass(frozen=True)
class LinearAttention:
    """The gated delta rule that ``layers`` of the layers have instead of attention (Qwen3.5).

    Each value head has a state of ``key_dim`` x ``value_dim``; ``kernel`` is the width of the convolution before it.
    """

    layers: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int = 4

    @property
    def key_size(self) -> int:
        """Width of all key heads together, which is that of all query heads."""
        return self.key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        """Width of all value heads together."""
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.key_size + self.value_size


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a decoder that memory and speed depend on.

    ``intermediate_size`` is the real width of the feed-forward layer (half of what Qwen-1 configs say).
    ``attention_bias``: biases on q, k and v (Qwen-1 to Qwen2.5). ``qk_norm``: an RMSNorm per head (Qwen3).
    ``max_position_embeddings``: the positions that it is meant for, YaRN in its config counted.
    ``rope_factor``: by how much model.rope_scaling has stretched these positions.
    ``longest_row``: tokens up to which positions are encoded the same in every batch; None: any number.
    ``output_gate``: queries come with a gate for attention's output (Qwen3.5).
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
    rope_factor: float = 1.0
    output_gate: bool = False
    experts: Experts | None = None
    linear: LinearAttention | None = None

    @property
    def query_size(self) -> int:
        """Width of all query heads together; differs from hidden_size in Qwen3."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all key heads together, which is that of all value heads."""
        return self.num_key_value_heads * self.head_dim

    @property
    def attention_layers(self) -> int:
        """Layers whose tokens attend to all earlier ones."""
        return self.num_hidden_layers - (self.linear.layers if self.linear else 0)

    @property
    def dense_layers(self) -> int:
        """Layers with one feed-forward network for all tokens."""
        return self.num_hidden_layers - (self.experts.layers if self.experts else 0)

    @property
    def expert_parameters(self) -> int:
        """Weights of one expert."""
        return 3 * self.hidden_size * self.experts.width if self.experts else 0

    @property
    def network_parameters(self) -> int:
        """Weights of one dense feed-forward network: of gate, up and down."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def largest_tensor(self) -> int:
        """Elements of the largest parameter: the embedding, or all experts of a layer, which are one tensor."""
        experts = 2 * self.experts.count * self.experts.width * self.hidden_size if self.experts else 0
        return max(self.vocab_size * self.hidden_size, experts)

    @property
    def all_expert_parameters(self) -> int:
        """Weights of all experts of all layers, which ranks may split."""
        return self.experts.layers * self.experts.count * self.expert_parameters if self.experts else 0

    @cached_property
    def layers_matmul_parameters(self) -> int:
        """Weights of all decoder layers that a token is multiplied with: of the experts, those that it passes."""
        hidden, queries = self.hidden_size, self.query_size * (2 if self.output_gate else 1)
        total = self.attention_layers * hidden * (queries + 2 * self.key_value_size + self.query_size)
        total += self.dense_layers * self.network_parameters
        if linear := self.linear:
            total += linear.layers * hidden * (linear.channels + 2 * linear.value_size + 2 * linear.value_heads)
        if experts := self.experts:
            shared = hidden * (3 * experts.shared_width + 1) if experts.shared_width else 0
            passed = experts.per_token * self.expert_parameters + experts.count * hidden
            total += experts.layers * (passed + shared)
        return total

    @cached_property
    def small_parameters(self) -> int:
        """Parameters without a matrix product: norms, biases and convolutions; ZeRO-3 leaves them unsharded."""
        biases = self.query_size + 2 * self.key_value_size if self.attention_bias else 0
        if self.attention_bias and self.qk_norm:  # Qwen3's flag covers the output projection as well
            biases += self.hidden_size
        total = self.attention_layers * (biases + (2 * self.head_dim if self.qk_norm else 0))
        if linear := self.linear:
            total += linear.layers * (linear.channels * linear.kernel + 2 * linear.value_heads + linear.value_dim)
        return total + (2 * self.num_hidden_layers + 1) * self.hidden_size

    @cached_property
    def num_parameters(self) -> int:
        """Exact number of trained parameters; a tied head counts once."""
        idle = 0
        if experts := self.experts:
            idle = experts.layers * (experts.count - experts.per_token) * self.expert_parameters
        return self.active_parameters + idle

    @cached_property
    def active_parameters(self) -> int:
        """Parameters that one token passes, with both embeddings; all of a dense model's."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.layers_matmul_parameters + self.small_parameters + embeddings

    @cached_property
    def num_matmul_parameters(self) -> int:
        """Weights that a token is multiplied with: layers and head (tied or not), not the embedding."""
        return self.layers_matmul_parameters + self.vocab_size * self.hidden_size


def full_name(name: str) -> str:
    """Return the hub ID of a model that qwen_job/facts/models knows by ``name``, which may lack the owner.

    Raises:
        UnknownName: no file has the name; suggests near ones.
    """
    values = read_facts(find(name, [fact("models")], "model"))
    names = [str(values["name"]), *map(str, values.get("aliases") or ())]
    return next((one for one in names if one.rpartition("/")[2].lower() == name.strip().lower()), names[0])


def known_spelling(name: str) -> str:
    """Return a hub ID of Qwen's in upper and lower case as qwen_job/facts/models has it; others as they are."""
    if not name.lower().startswith("qwen/"):
        return name
    try:
        values = read_facts(find(name, [fact("models")], "model"))
    except UnknownName:
        return name
    names = [str(values["name"]), *map(str, values.get("aliases") or ())]
    return name if name in names else next((one for one in names if one.lower() == name.lower()), name)


def misspelt(name: str) -> str:
    """Return ``; did you mean 'Qwen/...'?`` for an unknown hub ID of Qwen's that is close to a known one, else ""."""
    if not name.lower().startswith("qwen/"):
        return ""
    known = [str(read_facts(path)["name"]) for path in fact("models").glob("*.yaml")]
    return did_you_mean(name, known, cutoff=MISSPELT)


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
    """Build a ModelShape from a Hugging Face config.json of a Qwen model, from Qwen-1 on; of a later one, a dense one.

    Of a vision-language config, the text model counts. ``where`` is the file that errors name.

    Raises:
        ModelError: a field is missing, impossible or ignored by training, or the model is of an unknown kind.
    """
    where = where or name
    config = _text_model(config, where)
    model_type = str(config.get("model_type", "")).lower()
    _refuse_others(config, model_type, where)
    check_fields(config, where)
    need = _Fields(config, where)
    heads, hidden, layers = need("num_attention_heads"), need("hidden_size"), need("num_hidden_layers")
    qwen1, hybrid = model_type == "qwen", model_type in HYBRIDS
    generation = re.match(r"qwen(\d+)", model_type)
    qk_norm = bool(config.get("qk_norm", generation is not None and int(generation[1]) >= 3))
    head_key = "kv_channels" if qwen1 else "head_dim"
    experts = _experts(need, layers) if model_type in MIXTURES else None
    dense = experts is None or experts.layers < layers
    shape = ModelShape(
        name=name,
        architecture=_architecture(config, model_type),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads if qwen1 else need("num_key_value_heads", heads),
        head_dim=need(head_key) if config.get(head_key) is not None else hidden // heads,
        intermediate_size=need("intermediate_size") // (2 if qwen1 else 1) if dense else 0,
        vocab_size=need("vocab_size"),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        max_position_embeddings=max(
            need("seq_length" if qwen1 else "max_position_embeddings"), own_length(config) or 1
        ),
        attention_bias=qwen1 or bool(config.get("attention_bias", model_type in ("qwen2", "qwen2_moe"))),
        qk_norm=qk_norm,
        attention_dropout=dropout_of(config),
        longest_row=longest_row(config),
        output_gate=hybrid,
        experts=experts,
        linear=_linear(need) if hybrid else None,
    )
    if shape.num_attention_heads % shape.num_key_value_heads:
        raise ModelError(
            f"{where}: num_key_value_heads: {shape.num_key_value_heads} does not divide {heads} query heads"
        )
    return shape


def _text_model(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return the config of the text model of a vision-language model, or the config itself."""
    if config.get("model_type") not in FAMILIES and isinstance(config.get("text_config"), Mapping):
        raise ModelError(f"{where}: text_config: a multimodal model; use a text model")
    try:
        return text_config(config)
    except ModelError as error:
        raise ModelError(f"{where}: {str(error).removeprefix('config.json: ')}") from None


def _experts(need: _Fields, layers: int) -> Experts:
    every, dense = need("decoder_sparse_step", 1), need.config.get("mlp_only_layers") or ()
    if not isinstance(dense, (list, tuple)):
        raise ModelError(f"{need.where}: mlp_only_layers: must be a list of layers' numbers, not {shown(dense)}")
    found = Experts(
        layers=sum(layer not in dense and (layer + 1) % every == 0 for layer in range(layers)),
        count=need("num_experts"),
        per_token=need("num_experts_per_tok"),
        width=need("moe_intermediate_size"),
        shared_width=need("shared_expert_intermediate_size") if need.config["model_type"] != "qwen3_moe" else 0,
    )
    if found.per_token > found.count:
        raise ModelError(f"{need.where}: num_experts_per_tok: {found.per_token} of {found.count} experts (num_experts)")
    return found


def _linear(need: _Fields) -> LinearAttention:
    try:
        count = layer_kinds(need.config).count(LINEAR)
    except ModelError as error:
        raise ModelError(f"{need.where}: {str(error).removeprefix('config.json: ')}") from None
    return LinearAttention(
        layers=count,
        key_heads=need("linear_num_key_heads"),
        value_heads=need("linear_num_value_heads"),
        key_dim=need("linear_key_head_dim"),
        value_dim=need("linear_value_head_dim"),
        kernel=need("linear_conv_kernel_dim", 4),
    )


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


def _refuse_others(config: Mapping[str, Any], model_type: str, where: str) -> None:
    experts = [key for key in ("num_experts", "num_local_experts", "n_routed_experts") if config.get(key)]
    if model_type not in MIXTURES and (experts or "moe" in model_type):
        raise ModelError(
            f"{where}: {(experts or ['model_type'])[0]}: a mixture of experts of type {model_type!r}; "
            f"known are {', '.join(MIXTURES)}; use one of them, or a dense Qwen model"
        )
    for key in QUANTIZED_KEYS:
        if config.get(key):
            raise ModelError(f"{where}: {key}: the model is quantized; use the full-precision model")
    layers = config.get("layer_types") or ()
    known = (FULL, SLIDING)
    if model_type not in HYBRIDS and (
        not isinstance(layers, (list, tuple)) or any(kind not in known for kind in layers)
    ):
        raise ModelError(f"{where}: layer_types: {model_type or 'this model'} has only {' and '.join(known)}")


def _architecture(config: Mapping[str, Any], model_type: str) -> str:
    listed = config.get("architectures") or [model_type]
    if not isinstance(listed, list):
        listed = [listed]
    return str(config.get("architecture") or listed[0])
