"""Convert qwen.tiktoken, Qwen-1's tokenizer, to a Qwen2 fast tokenizer and back.

Format of the .tiktoken file: a line per token, base64 of its bytes, a space, its rank; ranks are the ids.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from qwen_job.atomic import sha256_of
from qwen_job.chatml import SPECIAL_TOKENS
from qwen_job.errors import ModelError
from qwen_job.facts.model_files import read_json
from qwen_job.models.tokenizer_files import generation_config, tokenizer_config, tokenizer_json
from qwen_job.storage import write_bytes, write_json

FILE = "qwen.tiktoken"
SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
SPECIALS = (*SPECIAL_TOKENS, *(f"<|extra_{index}|>" for index in range(205)))
# Sampling settings of generation_config.json, in both layouts.
_SAMPLING = ("do_sample", "max_new_tokens", "repetition_penalty", "temperature", "top_k", "top_p")


def check_tiktoken(path: Path) -> None:
    """Check that ``path`` is the qwen.tiktoken that Qwen published.

    Raises:
        ModelError: it is not; the message says why.
    """
    if not path.is_file():
        raise ModelError(
            f"{path}: does not exist; copy qwen.tiktoken (2.5 MB) from the model's page beside its weights"
        )
    with path.open("rb") as file:
        if file.read(20).startswith(b"version https://git-"):
            raise ModelError(f"{path}: is a git-lfs pointer; install git-lfs and run 'git lfs pull' in its folder")
    if sha256_of(path) != SHA256:
        raise ModelError(f"{path}: is damaged ({path.stat().st_size} bytes, another hash); copy or download it again")


def read_ranks(path: Path) -> dict[bytes, int]:
    """Return {token: rank} of a .tiktoken file.

    Raises:
        ModelError: naming the first bad line.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line:
            token, _, rank = line.partition(b" ")
            try:
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except (binascii.Error, ValueError):
                raise ModelError(f"{path}:{number}: is not 'base64 rank'; copy or download it again") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ModelError(f"{path}: ranks are not 0 to {len(ranks) - 1}; copy or download it again")
    return ranks


def byte_letters() -> list[str]:
    """Return the printable character that byte-level BPE uses for each of the 256 bytes (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(printable)))
    return [letters[byte] for byte in range(256)]


def recover_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return the merge that makes each token of two bytes or more, in the order of ranks.

    A token's merge is the pair left when BPE runs over its bytes with every lower rank allowed.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _parts(ranks, token, rank)
            if len(parts) != 2:
                raise ModelError(f"qwen.tiktoken: token {rank} is not a merge of two others; the file is damaged")
            merges.append((parts[0], parts[1]))
    return merges


def _parts(ranks: Mapping[bytes, int], token: bytes, limit: int) -> list[bytes]:
    parts = [token[index : index + 1] for index in range(len(token))]
    while len(parts) > 2:
        best, at = limit, -1
        for index in range(len(parts) - 1):
            rank = ranks.get(parts[index] + parts[index + 1], limit)
            if rank < best:
                best, at = rank, index
        if at < 0:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def write_fast_tokenizer(ranks: Mapping[bytes, int], folder: Path, model_max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json; special ids follow the ranks, as in the original."""
    letters = byte_letters()

    def spell(token: bytes) -> str:
        return "".join([letters[byte] for byte in token])

    vocabulary = {spell(token): rank for token, rank in sorted(ranks.items(), key=lambda item: item[1])}
    merges = [(spell(left), spell(right)) for left, right in recover_merges(ranks)]
    content = json.dumps(tokenizer_json(vocabulary, merges, SPECIALS), ensure_ascii=False)
    write_bytes(folder / "tokenizer.json", content.encode())
    write_json(folder / "tokenizer_config.json", tokenizer_config(len(ranks), SPECIALS, model_max_length))


def write_generation_config(ranks: Mapping[bytes, int], folder: Path, original: Mapping[str, object]) -> None:
    """Write generation_config.json with ChatML's stop tokens and the original's sampling settings.

    ``max_new_tokens`` is left out: servers would apply it as a limit to all requests.
    """
    sampling = {key: original[key] for key in _SAMPLING if key in original and key != "max_new_tokens"}
    write_json(folder / "generation_config.json", generation_config(len(ranks), sampling or None))


def sampling_of(folder: Path) -> dict[str, object]:
    """Return the sampling settings of a folder's generation_config.json; none if it does not sample."""
    path = folder / "generation_config.json"
    found = read_json(path) if path.is_file() else {}
    return {key: found[key] for key in _SAMPLING if key in found} if found.get("do_sample") else {}


def write_tiktoken(folder: Path, target: Path) -> None:
    """Write a fast tokenizer's vocabulary as a .tiktoken file: for Qwen's own, the original byte for byte."""
    model = cast("Mapping[str, Mapping[str, int]]", read_json(folder / "tokenizer.json").get("model") or {})
    added = {
        str(token["content"])
        for token in cast("list[dict[str, object]]", read_json(folder / "tokenizer.json").get("added_tokens") or [])
    }
    values = {letter: byte for byte, letter in enumerate(byte_letters())}
    lines = []
    try:
        for word, rank in sorted(model["vocab"].items(), key=lambda item: item[1]):
            if word not in added:
                token = bytes(values[letter] for letter in word)
                lines.append(base64.b64encode(token) + b" %d\n" % rank)
    except KeyError as error:
        raise ModelError(f"{folder / 'tokenizer.json'}: is not byte-level BPE ({error} is missing)") from None
    write_bytes(target, b"".join(lines))
