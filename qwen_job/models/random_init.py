"""A random model: weights from a fixed seed, and a ChatML tokenizer trained on the job's data.

It is bit-identical on every machine: the draws use integers until one last multiplication, and no libm.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from qwen_job import strict_yaml
from qwen_job.chatml import PATTERN, ROLES, SPECIAL_TOKENS, SYSTEM_PROMPT
from qwen_job.errors import ModelError
from qwen_job.facts import fact
from qwen_job.facts.weights import Shapes, expected_shapes, size
from qwen_job.models.config_json import check_config
from qwen_job.models.tensors import NewTensor, write_tensors
from qwen_job.models.tokenizer_files import generation_config, tokenizer_config, tokenizer_json
from qwen_job.storage import write_json

if TYPE_CHECKING:
    import numpy

SEED = 20240229
_FACTS_ONLY = {"name", "aliases", "architecture", "source", "parameters", "thinking"}
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
# A sum of four 16-bit numbers has mean 4 * 65535 / 2 and variance 4 * (65536**2 - 1) / 12.
_SUM_MEAN, _SUM_STD = 131070, 37837.22746


def load_config(name: str) -> dict[str, object]:
    """Return the config.json of a model in qwen_job/facts/models/, or of a YAML file.

    Raises:
        ModelError: there is no such file, or it is not a model's.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else fact("models", f"{name}.yaml")
    try:
        facts = strict_yaml.load(path)
    except FileNotFoundError:
        known = ", ".join(sorted(found.stem for found in fact("models").glob("*.yaml")))
        raise ModelError(f"model.name: {name!r} has no file in qwen_job/facts/models; known: {known}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(facts, dict) or "architecture" not in facts:
        raise ModelError(f"{path}: has no key 'architecture'; write e.g. architecture: Qwen2ForCausalLM")
    config = {key: _number(value) for key, value in facts.items() if key not in _FACTS_ONLY}
    return {"architectures": [facts["architecture"]], **config}


def _number(value: object) -> object:
    """Convert text such as 1e-6 to a number, as JSON would: YAML 1.1 reads only 1.0e-6 as one."""
    if isinstance(value, dict):
        return {key: _number(part) for key, part in value.items()}
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Train byte-level BPE of at most ``vocab_size`` entries; return its vocabulary and merges."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, show_progress=False, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = dict(sorted(model["vocab"].items(), key=lambda item: cast(int, item[1])))
    return vocabulary, [(left, right) for left, right in model["merges"]]


def _draw(name: str, count: int, std: float) -> Iterator[bytes]:
    """Yield ``count`` nearly normal float32 numbers, little-endian (sums of four uniforms), seeded by ``name``."""
    import numpy

    seed = int.from_bytes(hashlib.sha256(f"{SEED}:{name}".encode()).digest()[:8], "little")
    generator = numpy.random.PCG64(seed)
    while count:
        part = min(count, 1 << 20)
        words = generator.random_raw(part).astype("<u8").view("<u2").reshape(part, 4)
        sums: numpy.ndarray = words.sum(axis=1, dtype=numpy.int32)
        yield ((sums - _SUM_MEAN).astype("<f4") * numpy.float32(std / _SUM_STD)).tobytes()
        count -= part


def _weights(shapes: Shapes, std: float) -> Iterator[NewTensor]:
    import numpy

    # A hybrid's norms multiply by 1 + weight, but for the one inside linear attention.
    hybrid = any(".linear_attn." in name for name in shapes)
    for name, shape in sorted(shapes.items()):
        pieces: Iterable[bytes]
        if name.endswith("norm.weight"):
            centred = hybrid and ".linear_attn." not in name
            pieces = [(numpy.zeros if centred else numpy.ones)(shape, "<f4").tobytes()]
        elif name.endswith(".bias"):
            pieces = [numpy.zeros(shape, "<f4").tobytes()]
        elif name.endswith(".dt_bias"):
            pieces = [numpy.ones(shape, "<f4").tobytes()]
        elif name.endswith(".A_log"):  # transformers draws log(0.01) to log(16); ours are spread evenly, without libm
            pieces = [numpy.linspace(-4.5, 2.75, shape[0]).astype("<f4").tobytes()]
        else:
            pieces = _draw(name, math.prod(shape), std)
        yield NewTensor(name, "F32", shape, pieces)


def initial_key(config: Mapping[str, object], texts: Sequence[str]) -> str:
    """Return the hash that names a random model in the cache."""
    digest = hashlib.sha256(json.dumps([SEED, 1, config], sort_keys=True).encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode(errors="surrogatepass")).digest())
    return digest.hexdigest()[:16]


def write_random_model(config: Mapping[str, object], texts: Sequence[str], folder: Path) -> None:
    """Write config, weights, tokenizer and generation config of a random model into an empty folder."""
    shapes = expected_shapes(config)
    check_config(config)
    rows = size(config, "vocab_size") - len(SPECIAL_TOKENS)
    if rows < 256:
        raise ModelError(f"config.json: vocab_size: {rows + 3} is too small; byte-level ChatML needs 259 at least")
    # Twice, so that the frame of a conversation counts as frequent even in a tiny file.
    frame = [SYSTEM_PROMPT, *ROLES] * 2
    clean = [text.encode(errors="ignore").decode() for text in [*texts, *frame]]
    vocabulary, merges = train_tokenizer(clean, rows)
    first = len(vocabulary)
    std = config.get("initializer_range", 0.02)
    write_tensors(folder / "model.safetensors", _weights(shapes, cast(float, std)))
    ids = {"bos_token_id": first, "eos_token_id": first + 2, "pad_token_id": first}
    write_json(folder / "config.json", {"use_cache": True, "torch_dtype": "float32", **config, **ids})
    write_json(folder / "generation_config.json", generation_config(first))
    write_json(folder / "tokenizer.json", tokenizer_json(vocabulary, merges, SPECIAL_TOKENS))
    limit = size(config, "max_position_embeddings", 2048)
    write_json(folder / "tokenizer_config.json", tokenizer_config(first, SPECIAL_TOKENS, limit))
