"""Model folders that are broken or hostile in every file: refused with a place, or complete and then loaded as well.

``check`` reads a folder as ``model check`` does. No case runs a pickle: each .bin that asks for code is refused.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_job.models.completeness import check_folder
from qwen_job.models.random_init import load_config, write_random_model
from tests.fuzz.harness import Box, amount, judge

SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 300, "max_position_embeddings": 64,
}  # fmt: skip
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SCALARS: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 1.5, -0.0, 1e-300, 1e300, 2**31, 2**63, 2**64, -(2**63), 10**9, 10**25, 10**299,
    10**400, float("inf"), float("nan"), "", "0", "silu", "float32", "auto", "load", "../x", "/etc/passwd", "a\0b",
    "\x1b[31m", "\u202e", "\ud800", "x" * 5000, [], {}, [[]], [None], [1, 2], {"a": 1}, {"type": "yarn"},
    {"rope_type": "linear", "factor": 2.0}, {"rope_type": "llama3"}, ["full_attention"] * 2, ["sliding_attention"] * 2,
]  # fmt: skip
KEYS = [
    "attn_implementation", "auto_map", "quantization_config", "transformers_weights", "dtype", "torch_dtype",
    "rope_scaling", "rope_parameters", "layer_types", "sliding_window", "use_sliding_window", "head_dim", "hidden_act",
    "attention_bias", "attention_dropout", "pad_token_id", "eos_token_id", "model_type", "architectures", "id2label",
    "per_layer_config", "tie_word_embeddings", "problem_type", "max_window_layers", "experts_implementation",
    "name_or_path", "output_attentions", "added_tokens", "vocab", "merges", "normalizer", "pre_tokenizer", "decoder",
    "post_processor", "truncation", "padding", "temperature", "__metadata__", "weight_map", "shape", "data_offsets",
]  # fmt: skip


# What a config may well say: each alone, most of them fine.
LIKELY: list[dict[str, Any]] = [
    {"rope_scaling": {"type": "yarn", "factor": 4.0}}, {"rope_scaling": {"rope_type": "linear", "factor": 2}},
    {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32}},
    {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}},
    {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": 2.0}},
    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 32}},
    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
                      "original_max_position_embeddings": 32}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 0.5, "beta_fast": 1, "beta_slow": 32}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope_theta": 10000}, {"rms_norm_eps": 1},
    {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "truncate": "no"}},
    {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, {"attention_dropout": 0},
    {"layer_types": ["full_attention"] * 2}, {"num_key_value_heads": None}, {"head_dim": 8}, {"head_dim": None},
    {"pad_token_id": -1}, {"pad_token_id": None}, {"eos_token_id": [1, 10**9]}, {"bos_token_id": None},
    {"hidden_act": "gelu_new"}, {"hidden_act": "quick_gelu"}, {"hidden_act": "swish"}, {"torch_dtype": "float64"},
    {"dtype": "bfloat16", "torch_dtype": None}, {"max_position_embeddings": 1}, {"max_position_embeddings": 2**30},
    {"initializer_range": 0}, {"use_cache": False}, {"transformers_version": 5}, {"id2label": {"x": 1}},
    {"num_labels": "many"}, {"problem_type": "x"}, {"output_attentions": True}, {"chunk_size_feed_forward": "x"},
    {"is_encoder_decoder": 3}, {"attn_implementation": "owner/kernel"}, {"auto_map": {"AutoConfig": "x.Y"}},
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a complete model of some kilobytes."""
    folder = tmp_path_factory.mktemp("whole")
    write_random_model({**load_config("qwen2-tiny"), **SIZES}, ["hello"], folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(whole: dict[str, bytes], tmp_path: Path) -> Path:
    """A complete model, to be broken."""
    (tmp_path / "model").mkdir()
    for name, content in whole.items():
        (tmp_path / "model" / name).write_bytes(content)
    return tmp_path / "model"


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every part of a JSON value, at most some hundred."""
    yield path
    parts: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        parts = list(value.items())[:60]
    elif isinstance(value, list):
        parts = list(enumerate(value))[:60]
    for key, part in parts:
        yield from places(part, (*path, key))


def changed(value: Any, draw: random.Random) -> Any:
    """Return a JSON value with one to three of its parts replaced, removed, renamed or added."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        path = draw.choice(list(places(value)))
        if not path:
            if isinstance(value, dict):
                value[draw.choice(KEYS)] = draw.choice(SCALARS)
            continue
        at = value
        for key in path[:-1]:
            at = at[key]
        match draw.randrange(6):
            case 0 if isinstance(at, dict):
                del at[path[-1]]
            case 1 if isinstance(at, dict):
                at[draw.choice(KEYS)] = at.pop(path[-1])
            case 2 if isinstance(at, dict):
                at[draw.choice(KEYS)] = draw.choice(SCALARS)
            case 3 if type(at[path[-1]]) is int:
                at[path[-1]] += draw.choice([-1, 1, 7, 2**32, 10**12])
            case _:
                at[path[-1]] = copy.deepcopy(draw.choice(SCALARS))
    return value


def spoiled(data: bytes, draw: random.Random) -> bytes:
    """Return bytes that were cut, flipped, repeated, or replaced by what breaks readers."""
    at = draw.randrange(len(data) + 1)
    match draw.randrange(8):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
        case 2:
            return data[:at] + data[at : at + 40] * draw.choice([2, 1000]) + data[at:]
        case 3:
            return data[:at] + draw.choice([b"\0", b"\xff\xfe", b"\xc0\x80", b"\x1b[2J", b'"', b"{", b"]"]) + data[at:]
        case 4:
            return draw.choice([b"[", b'{"a":', b'[{"b":', b"-", b"9"]) * draw.choice([10, 5_000, 100_000])
        case 5:
            return draw.choice([b"", b"null", b"[]", b"{}", b"0", b'"x"', b"NaN", b"\xef\xbb\xbf{}", b"version https"])
        case 6:
            return data[at:]
        case _:
            return data.decode(errors="replace").encode(draw.choice(["utf-16", "utf-32", "utf-8-sig"]))


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def with_header(data: bytes, header: bytes, draw: random.Random) -> bytes:
    """Return a safetensors file with another header; now and then its length is a lie."""
    length = struct.unpack("<Q", data[:8])[0]
    lies = [0, 1, 7, len(header) + 1, 2**24, 2**32, 2**63, 2**64 - 1]
    told = draw.choice(lies) if draw.random() < 0.1 else len(header)
    return struct.pack("<Q", told) + header + data[8 + length :]


def broken(whole: dict[str, bytes], draw: random.Random) -> dict[str, bytes]:
    """Return the files that a case puts in the place of the complete ones."""
    names = ["config.json"] * 4 + ["tokenizer.json"] * 2 + ["tokenizer_config.json", "generation_config.json"]
    name = draw.choice([*names, WEIGHTS, WEIGHTS, WEIGHTS, INDEX])
    if name == INDEX:
        index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-1.safetensors", "x": "model-2.safetensors"}}
        text = as_json(changed(index, draw)) if draw.random() < 0.8 else spoiled(as_json(index), draw)
        return {WEIGHTS: b"", "model-1.safetensors": whole[WEIGHTS], INDEX: text}
    if name == WEIGHTS:
        data = whole[WEIGHTS]
        header = data[8 : 8 + struct.unpack("<Q", data[:8])[0]]
        if draw.random() < 0.75:
            return {WEIGHTS: with_header(data, as_json(changed(json.loads(header), draw)), draw)}
        return {WEIGHTS: with_header(data, spoiled(header, draw), draw) if draw.random() < 0.5 else spoiled(data, draw)}
    if draw.random() < 0.75:
        return {name: as_json(changed(json.loads(whole[name]), draw))}
    return {name: spoiled(whole[name], draw)}


def put(folder: Path, files: dict[str, bytes]) -> None:
    """Write a case's files into the folder; an empty model.safetensors beside an index means that there is none."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if INDEX in files:
        (folder / WEIGHTS).unlink()


def restore(folder: Path, whole: dict[str, bytes], files: dict[str, bytes]) -> None:
    for name in files:
        (folder / name).unlink(missing_ok=True)
        if name in whole:
            (folder / name).write_bytes(whole[name])


def check(folder: Path) -> str:
    """Check a folder as ``model check`` does."""
    return str(check_folder(folder)["model_type"])


@pytest.mark.train
@pytest.mark.parametrize("seed", range(4))
def test_a_broken_folder_is_refused_with_its_place(box: Box, folder: Path, whole: dict[str, bytes], seed: int) -> None:
    draw = random.Random(f"folder {seed}")
    for _ in range(amount(550)):
        files = broken(whole, draw)
        put(folder, files)
        judge(box.call(check, folder), files, places=[str(folder), *files])
        restore(folder, whole, files)


@pytest.mark.train
def test_the_commands_say_it_in_one_line(box: Box, folder: Path, whole: dict[str, bytes]) -> None:
    draw = random.Random("commands")
    for number in range(amount(90)):
        files = broken(whole, draw)
        put(folder, files)
        words = [["model", "check", "model"], ["model", "fetch", "./model"], ["model", "convert", "model", "out"]]
        judge(box.command(*words[number % 3], folder=folder.parent), files, places=["model"])
        shutil.rmtree(folder.parent / "out", ignore_errors=True)
        restore(folder, whole, files)


def load(folder: Path) -> tuple[bool, str]:
    """Check a folder; load one that is complete and feed it: (complete, what went wrong)."""
    import torch
    from transformers.utils import logging

    from qwen_job.errors import ModelError
    from qwen_job.models.loading import load_native

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        check_folder(folder)
    except ModelError:
        return False, ""
    try:
        model, report = load_native(folder, torch.float32, "sdpa")
        model(input_ids=torch.arange(8).unsqueeze(0), use_cache=False)
        wrong = sorted(report["missing_keys"]) + sorted(report["mismatched_keys"])
    except Exception as error:
        return True, f"{type(error).__name__}: {error}"
    return True, f"missing or mismatched: {wrong}" if wrong else ""


@pytest.mark.train
def test_what_is_complete_can_be_loaded(folder: Path, whole: dict[str, bytes]) -> None:
    pytest.importorskip("torch", reason="the training stack is not installed")
    draw, complete = random.Random("load"), 0
    with Box(memory=None) as torch_box:
        for _ in range(amount(200)):
            files = broken(whole, draw)
            while WEIGHTS not in files and "config.json" not in files:
                files = broken(whole, draw)
            if draw.random() < 0.5:
                files = {"config.json": as_json({**json.loads(whole["config.json"]), **draw.choice(LIKELY)})}
            put(folder, files)
            outcome = torch_box.call(load, folder)
            judge(outcome, files)
            assert outcome.value[1] == "", (files, outcome.value[1])
            complete += outcome.value[0]
            restore(folder, whole, files)
    assert complete > amount(40)


CODE = [b"cos\nsystem\n", b"cbuiltins\nexec\n", b"cposix\nsystem\n", b"c__builtin__\neval\n", b"csubprocess\ncall\n"]


def hostile_pickle(mark: Path, draw: random.Random) -> bytes:
    """Return a pickle that would run a command, written in one of the ways that pickle knows."""
    word = f"touch {mark}".encode()
    text = b"X" + struct.pack("<I", len(word)) + word
    match draw.randrange(5):
        case 0:
            return b"\x80\x02" + draw.choice(CODE) + text + b"\x85R."
        case 1:
            return b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text + b"\x85R."
        case 2:
            return b"(" + text + b"ios\nsystem\n."
        case 3:
            return b"\x80\x02}" + text + draw.choice(CODE) + text + b"\x85Rs."
        case _:
            return b"\x80\x02(cos\nsystem\n" + text + b"o."


def pickled(mark: Path, draw: random.Random) -> bytes:
    """Return a .bin file: a good one spoiled, or a hostile pickle in either layout of torch."""
    import torch

    state = {"model.norm.weight": torch.zeros(16), "lm_head.weight": torch.zeros(4, 4), "none": draw.choice(SCALARS)}
    if draw.random() < 0.5:
        del state["none"]
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=draw.random() < 0.5)
    data = stream.getvalue()
    match draw.randrange(4):
        case 0:
            return spoiled(data, draw)
        case 1 if data[:2] == b"PK":
            return rezipped(data, lambda content: spoiled(content, draw))
        case 2 if data[:2] == b"PK":
            return rezipped(data, lambda _: hostile_pickle(mark, draw))
        case 3:
            head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
            return head + hostile_pickle(mark, draw) + pickle.dumps([], 2)
        case _:
            return hostile_pickle(mark, draw)


def rezipped(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, change(content) if entry.filename.endswith("data.pkl") else content)
    return stream.getvalue()


def convert_bin(path: Path, scratch: Path) -> int:
    """Turn a .bin file into safetensors, as a conversion does."""
    from qwen_job.models.legacy import unpickle

    return len(unpickle([path], scratch))


@pytest.mark.train
def test_a_bin_file_is_weights_or_refused_and_never_run(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the training stack is not installed")
    draw, mark, path = random.Random("bin"), tmp_path / "ran", tmp_path / "pytorch_model.bin"
    with Box(memory=None) as torch_box:
        for _ in range(amount(300)):
            path.write_bytes(pickled(mark, draw))
            outcome = torch_box.call(convert_bin, path, tmp_path)
            judge(outcome, path.read_bytes()[:500], places=[str(path)])
            assert not mark.exists(), path.read_bytes()[:500]
