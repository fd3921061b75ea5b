"""Check the tokenizer.json of a model folder: readable, with ChatML's tokens, and an embedding row for every ID."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qwen_job.chatml import SPECIAL_TOKENS
from qwen_job.errors import ModelError
from qwen_job.facts.model_files import member, read_json
from qwen_job.facts.weights import shown

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def check_tokenizer(folder: Path, vocab_size: int) -> None:
    """Check a folder's tokenizer against the ``vocab_size`` rows of its embedding.

    If the package tokenizers is installed, it loads the file too, because it may assign other IDs.

    Raises:
        ModelError: a file is missing or broken, a token of ChatML is missing, or an id has no row.
    """
    for name in TOKENIZER_FILES:
        member(folder, name)
    path = folder / "tokenizer.json"
    content = read_json(path)
    read_json(folder / "tokenizer_config.json")
    ids = {**_vocabulary(path, content), **added_tokens(path, content)}
    missing = [token for token in SPECIAL_TOKENS if token not in ids]
    if missing:
        raise ModelError(f"{path}: has no {' or '.join(missing)}; this is not the tokenizer of a Qwen-Chat model")
    ids.update(_as_loaded(path))
    token, last = max(ids.items(), key=lambda item: item[1])
    if last >= vocab_size:
        raise ModelError(
            f"{path}: {shown(token)} has the id {last}, and config.json: vocab_size: {vocab_size} gives the embedding "
            f"no such row; resize the model's embedding to {last + 1} rows, or use the model's own tokenizer"
        )


def _vocabulary(path: Path, content: Mapping[str, object]) -> dict[str, int]:
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise ModelError(f"{path}: model.vocab: expected tokens and their ids; copy or download it again")
    for token, number in vocabulary.items():
        if type(number) is not int or number < 0:
            raise ModelError(f"{path}: model.vocab: {shown(token)}: expected an id, found {shown(number)}")
    return vocabulary


def added_tokens(path: Path, content: Mapping[str, object]) -> dict[str, int]:
    """Return {token: id} of what tokenizer.json adds to its vocabulary.

    Raises:
        ModelError: naming a broken entry.
    """
    entries = content.get("added_tokens")
    if entries is None:
        return {}
    found: dict[str, int] = {}
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        fields = entry if isinstance(entry, Mapping) else {}
        token, place = fields.get("content"), fields.get("id")
        if not isinstance(token, str) or type(place) is not int or place < 0:
            raise ModelError(f"{path}: added_tokens: entry {number + 1}: expected content and id, found {shown(entry)}")
        found[token] = place
    return found


def _as_loaded(path: Path) -> dict[str, int]:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return {}
    try:
        vocabulary: dict[str, int] = Tokenizer.from_str(path.read_text(encoding="utf-8")).get_vocab(True)
    except BaseException as error:  # the Rust side raises plain Exception, and panics as a BaseException
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: is not a tokenizer ({reason}); fetch the model again") from error
    return vocabulary
