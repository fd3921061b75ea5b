"""What is known about GPUs and models: the files of qwen_job/facts/gpus and qwen_job/facts/models, and any config.json.

Nothing is guessed: a GPU or a model that no file describes is an error that names its nearest neighbours, and
a figure that a file leaves out is None. Only the file that is asked for is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from qwen_job.errors import JobError, ModelError
from qwen_job.facts import fact
from qwen_job.facts.config_fields import check_fields, dropout_of, longest_row
from qwen_job.facts.model_files import read_config, read_json
from qwen_job.facts.weights import LIMITS, QUANTIZED_KEYS, shown
from qwen_job.strict_yaml import Loader
from qwen_job.text import nearest


class UnknownName(JobError):
    """No file in configs/ describes a GPU or a model of this name."""


@dataclass(frozen=True)
class Gpu:
    """One kind of accelerator. None and a missing peak mean "not known", never zero.

    Units: bytes, dense TFLOP/s by precision, and 10^9 bytes per second. ``nvlink_gbs`` and ``pcie_gbs`` count
    both directions together, as data sheets do. ``memory_bytes`` is what CUDA reports, not the label on the
    box.
    """

    name: str
    memory_bytes: int | None
    compute_capability: float
    peak_tflops: dict[str, float]
    memory_bandwidth_gbs: float | None
    nvlink_gbs: float | None
    pcie_gbs: float | None
    aliases: tuple[str, ...] = ()
    source: str = ""

    @property
    def is_cpu(self) -> bool:
        """Tell whether this is a processor, not an accelerator."""
        return self.name.upper() == "CPU"

    def of_cores(self, cores: int) -> Gpu:
        """Return a processor whose figures, which are those of one core, are of ``cores`` cores."""
        peaks = {precision: cores * peak for precision, peak in self.peak_tflops.items()}
        return replace(self, peak_tflops=peaks)


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


def gpu_names() -> list[str]:
    """Return the names of the GPUs that qwen_job/facts/gpus describes, sorted."""
    return sorted(str(_read_yaml(path)["name"]) for path in fact("gpus").glob("*.yaml"))


def load_gpu(name: str, search: Sequence[str | Path] = ()) -> Gpu:
    """Return the GPU called ``name`` (or by an alias, in any case) from ``search`` folders or qwen_job/facts/gpus.

    Raises UnknownName, with near matches, for a name that no file has.
    """
    folders = [Path(folder) for folder in search] + [fact("gpus")]
    path = _find(name, folders, "GPU")
    return gpu_from_mapping(_read_yaml(path), str(path))


def gpu_from_mapping(values: Mapping[str, Any], where: str) -> Gpu:
    """Build a Gpu from a file's mapping or a user's numbers in ``where``. Raises JobError."""
    try:
        return Gpu(
            name=str(values["name"]),
            memory_bytes=_number(values.get("memory_bytes"), int),
            compute_capability=float(values["compute_capability"]),
            peak_tflops={str(key): float(value) for key, value in (values.get("peak_tflops") or {}).items()},
            memory_bandwidth_gbs=_number(values.get("memory_bandwidth_gbs"), float),
            nvlink_gbs=_number(values.get("nvlink_gbs"), float),
            pcie_gbs=_number(values.get("pcie_gbs"), float),
            aliases=tuple(str(alias) for alias in values.get("aliases") or ()),
            source=str(values.get("source", "")),
        )
    except KeyError as error:
        raise JobError(f"{where}: {error.args[0]}: missing; a GPU needs name and compute_capability") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise JobError(f"{where}: not the numbers of a GPU ({error})") from error


def load_model_shape(name_or_path: str | Path) -> ModelShape:
    """Return the shape of a model that qwen_job/facts/models knows, or of a local folder with a config.json.

    Raises UnknownName for a name without a file, ModelError for a config that is unreadable, lacks a field or
    is not a dense decoder.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return model_shape_from_config(read_config(folder), str(name_or_path), str(folder / "config.json"))
    if folder.suffix == ".json" and folder.is_file():
        return model_shape_from_config(read_json(folder), str(name_or_path), str(folder))
    path = _find(str(name_or_path), [fact("models")], "model")
    config = _read_yaml(path)
    return model_shape_from_config(config, str(config.get("name", name_or_path)), str(path))


def model_shape_from_config(config: Mapping[str, Any], name: str, where: str = "") -> ModelShape:
    """Build a ModelShape from a Hugging Face config.json (Qwen-1, Qwen2, Qwen3 or a later dense Qwen).

    ``where`` is the file that errors name. Raises ModelError for a missing or impossible field, for models that are
    not dense decoders, and for fields that training would ignore.
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
    """Reads whole positive numbers out of a config and names the field and the file when one is not there."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config, self.where = config, where

    def __call__(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key, default)
        if value is None:
            raise ModelError(f"{self.where}: {key}: missing; take the config.json that belongs to the weights")
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
        raise ModelError(f"{where}: {(experts or ['model_type'])[0]}: a mixture of experts; take a dense Qwen model")
    if "hidden_size" not in config and isinstance(config.get("text_config"), Mapping):
        raise ModelError(f"{where}: text_config: a multimodal model; take a text model")
    for key in QUANTIZED_KEYS:
        if config.get(key):
            raise ModelError(f"{where}: {key}: the model is quantized; take the full-precision model")
    layers = config.get("layer_types") or ()
    if not isinstance(layers, (list, tuple)) or any(
        kind not in ("full_attention", "sliding_attention") for kind in layers
    ):
        raise ModelError(f"{where}: layer_types: has layers other than attention; take a dense attention model")


def _architecture(config: Mapping[str, Any], model_type: str) -> str:
    listed = config.get("architectures") or [model_type]
    if not isinstance(listed, list):
        listed = [listed]
    return str(config.get("architecture") or listed[0])


def _find(name: str, folders: Sequence[Path], kind: str) -> Path:
    """Return the file of ``name``: by file name first, so that one file is read; else by declared names."""
    wanted = str(name).strip().lower()
    stem = wanted.rsplit("/", 1)[-1]
    for folder in folders:
        direct = folder / f"{stem}.yaml"
        if stem and not stem.startswith(".") and direct.is_file() and wanted in _declared(direct, kind):
            return direct
    known: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            for declared in _declared(path, kind):
                known.setdefault(declared, path)
    if wanted in known:
        return known[wanted]
    raise UnknownName(_unknown(name, kind, sorted({str(_read_yaml(path)["name"]) for path in known.values()})))


def _declared(path: Path, kind: str) -> list[str]:
    """Return in lower case every name that a file answers to; models also without their owner."""
    values = _read_yaml(path)
    names = [str(values.get("name", path.stem)), *map(str, values.get("aliases") or ())]
    if kind == "model":
        names += [name.rsplit("/", 1)[-1] for name in names]
    return [name.lower() for name in names]


def _unknown(name: str, kind: str, known: Sequence[str]) -> str:
    near = nearest(name, known, 3)
    near += [entry for entry in known if name.lower() in entry.lower() and entry not in near][:3]
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
    way_out = "its numbers can stand in job.yaml" if kind == "GPU" else "a local folder with its config.json works too"
    return f"{kind} {name!r} is not known: {hint} ({way_out})"


def _number(value: Any, kind: type) -> Any:
    if value is None:
        return None
    number = kind(value)
    if number <= 0:
        raise ValueError(f"{value} is not above 0")
    return number


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        stat = path.stat()
        return _parsed(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise JobError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error


@lru_cache(maxsize=256)
def _parsed(path: Path, *_signature: int) -> Mapping[str, Any]:
    """Read a file once as long as it stays as it is: each run of a sweep asks for the same ones."""
    values = yaml.load(path.read_text(encoding="utf-8"), Loader)
    if not isinstance(values, dict):
        raise JobError(f"{path}: not a mapping of names to values")
    return MappingProxyType(values)
