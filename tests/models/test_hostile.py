"""Broken and hostile model folders: each is refused with its file and field, none is obeyed."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from qwen_job.cli import main
from qwen_job.errors import ModelError
from qwen_job.facts.model_files import member
from qwen_job.facts.model_shapes import load_model_shape
from qwen_job.facts.weights import expected_shapes
from qwen_job.models.completeness import check_folder
from qwen_job.models.convert import convert_folder
from qwen_job.models.random_init import load_config, write_random_model
from qwen_job.models.resolve import ensure_model
from qwen_job.models.tensors import INDEX, read_header
from qwen_job.run.sections import ModelSpec

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "model"
    folder.mkdir()
    write_random_model({**load_config("qwen2-tiny"), **SIZES}, ["hello"], folder)
    return folder


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    """A complete model of 2 layers and 512 tokens, to be broken."""
    shutil.copytree(small, tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, **changes: Any) -> None:
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(values))


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(ModelError) as error:
        check_folder(folder)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_token_beyond_the_embedding_is_refused_with_its_id(folder: Path) -> None:
    tokenizer = folder / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    content["added_tokens"].append({**content["added_tokens"][-1], "id": 512, "content": "<obs>"})
    last = max(content["model"]["vocab"].values())
    for number in range(last + 4, 512):  # the ids between are taken
        content["model"]["vocab"][f"filler{number}"] = number
    tokenizer.write_text(json.dumps(content))
    refused(folder, "tokenizer.json", "'<obs>'", "512", "vocab_size")
    content["added_tokens"].pop()
    tokenizer.write_text(json.dumps(content))
    check_folder(folder)


def test_an_embedding_smaller_than_the_vocabulary_is_refused(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["beyond"] = 600
    (folder / "tokenizer.json").write_text(json.dumps(content))
    refused(folder, "tokenizer.json", "600", "512")


def test_a_tokenizer_without_chatml_is_refused(folder: Path) -> None:
    edit(folder / "tokenizer.json", added_tokens=[])
    refused(folder, "tokenizer.json", "<|im_start|>")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("vocab_size", 10**200),
        ("hidden_size", 64.0),
        ("num_attention_heads", True),
        ("max_position_embeddings", "2048"),
        ("rms_norm_eps", "1e-6"),
        ("rms_norm_eps", 0),
        ("rope_theta", None.__class__.__name__),
        ("rope_theta", -1),
        ("rope_scaling", "yarn"),
        ("rope_scaling", {"type": "yarn"}),
        ("rope_scaling", {"type": "linear", "factor": "2"}),
        ("rope_scaling", {"rope_type": "mystery", "factor": 2}),
        ("rope_parameters", [1]),
        ("hidden_act", 7),
        ("hidden_act", "os.system"),
        ("tie_word_embeddings", "no"),
        ("use_sliding_window", 1),
        ("sliding_window", "4096"),
        ("layer_types", "full_attention"),
        ("layer_types", ["full_attention"]),
        ("layer_types", ["full_attention", "linear_attention"]),
        ("torch_dtype", "load"),
        ("torch_dtype", 16),
        ("initializer_range", []),
        ("attention_dropout", 2),
        ("pad_token_id", 512),
        ("eos_token_id", "<|im_end|>"),
        ("model_type", ["qwen2"]),
        ("architectures", {"Qwen2ForCausalLM": 1}),
        ("transformers_weights", "other.safetensors"),
        ("per_layer_config", {"0": {}}),
        ("fusion_config", {"x": 1}),
    ],
)
def test_a_config_of_the_wrong_kind_is_refused_by_key(folder: Path, key: str, value: object) -> None:
    edit(folder / "config.json", **{key: value})
    refused(folder, "config.json", key)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 25_000, "nested too deeply"),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "nested too deeply"),
        (b'{"vocab_size": 1e999}', "1e999"),
        (b'{"vocab_size": NaN}', "NaN"),
        (b'{"vocab_size": ' + b"9" * 5_000 + b"}", "digits"),
        (b"\xff\xfe{}", "cannot be read as JSON"),
        (b"\xef\xbb\xbf{}", "cannot be read as JSON"),
        (b"[]", "is not a JSON object"),
        (b"", "cannot be read as JSON"),
    ],
)
def test_a_broken_json_file_is_named(folder: Path, name: str, content: bytes, words: str) -> None:
    (folder / name).write_bytes(content)
    refused(folder, name, words)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder: Path) -> None:
    for name in ("generation_config.json", WEIGHTS, "config.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        refused(folder, name)


def header(folder: Path, change: dict[str, Any] | bytes) -> None:
    path = folder / WEIGHTS
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    text = change if isinstance(change, bytes) else json.dumps({**json.loads(data[8 : 8 + length]), **change}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


ENTRY = {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.norm.weight": {**ENTRY, "data_offsets": [float("inf"), 0]}}, "Infinity"),
        ({"model.norm.weight": {**ENTRY, "shape": [1e1]}}, "shape"),
        ({"model.norm.weight": {**ENTRY, "shape": [True]}}, "shape"),
        ({"model.norm.weight": {**ENTRY, "shape": [-64]}}, "shape"),
        ({"model.norm.weight": {**ENTRY, "shape": [1] * 9}}, "shape"),
        ({"model.norm.weight": {**ENTRY, "dtype": ["F32"]}}, "dtype"),
        ({"model.norm.weight": {**ENTRY, "data_offsets": [0]}}, "data_offsets"),
        ({"model.norm.weight": {**ENTRY, "data_offsets": [256, 0]}}, "bytes where"),
        ({"model.norm.weight": 7}, "header entry is broken"),
        ({"other": ENTRY}, "does not follow"),
        ({"__metadata__": {"format": 1}}, "__metadata__"),
        ({"__metadata__": "pt"}, "__metadata__"),
        (b"[" * 30_000, "nested too deeply"),
        ('{"a": 1}'.encode("utf-16"), "no safetensors header"),
        (b"null", "is not a safetensors file"),
    ],
)
def test_a_broken_header_is_refused(folder: Path, change: dict[str, Any] | bytes, words: str) -> None:
    header(folder, change)
    refused(folder, WEIGHTS, words)


def test_a_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 33))
        file.truncate(1 << 34)
    with pytest.raises(ModelError, match="is not a safetensors file"):
        read_header(path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "a\0b"])
@pytest.mark.parametrize("index", [INDEX, "pytorch_model.bin.index.json"])
def test_an_index_names_files_of_its_own_folder_only(folder: Path, name: str, index: str) -> None:
    (folder / WEIGHTS).rename(folder.parent / "secret.safetensors")
    (folder / index).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(ModelError, match=r"index\.json: .*is not a plain file name"):
        convert_folder(folder, folder.parent / "out")
    refused(folder, f"{index}: ", "is not a plain file name")
    assert not (folder.parent / "out").exists()


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_an_index_without_names_is_refused(folder: Path, content: object) -> None:
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps(content))
    refused(folder, INDEX, "weight_map")


@pytest.mark.parametrize("name", ["LICENSE", "config.json", WEIGHTS, "generation_config.json", "vocab.json"])
def test_a_link_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    elsewhere = folder.parent / "elsewhere"
    (folder / name).rename(elsewhere) if (folder / name).exists() else elsewhere.write_text("{}")
    (folder / name).symlink_to(elsewhere)
    refused(folder, name, "link out of the model's folder")
    with pytest.raises(ModelError, match="link out of the model's folder"):
        convert_folder(folder, folder.parent / "out")


def test_the_links_of_a_hub_cache_are_followed(folder: Path) -> None:
    blobs = folder.parent / "models--owner--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (folder / WEIGHTS).rename(blobs / "abc")
    (folder / WEIGHTS).symlink_to(blobs / "abc")
    (folder / "vocab.json").symlink_to("tokenizer.json")
    assert check_folder(folder)["model_type"] == "qwen2"
    assert member(folder, "nothing.json") == folder / "nothing.json"


def test_shards_without_an_index_are_refused_as_transformers_would(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    refused(folder, INDEX, "does not exist")


def _quantize(folder: Path, kind: str) -> None:
    match kind:
        case "gptq":
            edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
        case "fp8":
            edit(folder / "config.json", quantization_config={"quant_method": "fp8"})
        case "compressed":
            edit(folder / "config.json", compression_config={"format": "pack-quantized"})
        case "mlx":
            edit(folder / "config.json", quantization={"bits": 4})
        case "old gptq" | "old awq" | "modelopt":
            names = {"old gptq": "quantize", "old awq": "quant", "modelopt": "hf_quant"}
            (folder / f"{names[kind]}_config.json").write_text("{}")
        case "gguf":
            (folder / "config.json").unlink()
            (folder / "model-q4.gguf").touch()


KINDS = ["gptq", "fp8", "compressed", "mlx", "old gptq", "old awq", "modelopt", "gguf"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_folder_is_refused_by_every_command(
    folder: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _quantize(folder, kind)
    monkeypatch.chdir(folder.parent)
    (folder.parent / "data.jsonl").write_text('{"query": "a", "response": "b"}\n')
    out = str(folder.parent / "out")
    for words in (
        ["model", "check", str(folder)],
        ["model", "convert", str(folder), out],
        ["model", "export", str(folder), out, "--layout", "qwen1"],
        ["model", "fetch", str(folder)],
        ["chat", str(folder), "--prompt", "hello"] if kind != "gguf" else ["model", "check", str(folder)],
        ["evaluate", str(folder), "--data", "data.jsonl"] if kind != "gguf" else ["model", "check", str(folder)],
    ):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 9, words
        assert "quantized" in capsys.readouterr().err
    with pytest.raises(ModelError, match="quantized"):
        load_model_shape(folder)
    assert not Path(out).exists()


def test_weights_of_another_model_are_refused_not_left_out(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=1)
    refused(folder, "model.layers.1.", "another model")


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.qweight", "model.layers.0.mlp.up_proj.weight_scale_inv"])
def test_quantized_weights_are_told_by_their_names(folder: Path, name: str) -> None:
    header(folder, {name: {"dtype": "I32", "shape": [0], "data_offsets": [0, 0]}})
    refused(folder, "is quantized", name)


def test_weights_of_eight_bits_are_quantized(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    tensors, offset = {}, 0
    for name, shape in expected_shapes(config).items():
        size = shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensors[name] = {"dtype": "F8_E4M3", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(tensors).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    refused(folder, "is quantized", "F8_E4M3")


@pytest.mark.parametrize("merged", [False, True])
def test_an_adapter_is_no_model(folder: Path, merged: bool) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/other"}')
    if not merged:
        (folder / "config.json").unlink()
    refused(folder, "adapter_config.json")


def test_ensuring_a_model_checks_it(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=10**9)
    with pytest.raises(ModelError, match="num_hidden_layers: 1000000000 is more than"):
        ensure_model(ModelSpec(name=str(folder), source="local", cache_dir=folder.parent), output_dir=folder.parent)
