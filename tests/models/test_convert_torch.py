"""The converted model computes what Qwen-1 computes: checked against an own forward pass of Qwen-1."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_job.chat.template import MORE_TEMPLATES
from qwen_job.errors import ModelError
from qwen_job.models.convert import convert_folder
from qwen_job.models.random_init import load_config, write_random_model
from qwen_job.models.resolve import RECORD, ensure_model
from qwen_job.run.sections import ModelSpec

from .qwen1_checkpoint import CONFIG, HALF, HEADS, HIDDEN, LAYERS, random_weights, write_qwen1

pytestmark = pytest.mark.train
torch = pytest.importorskip("torch", reason="the training stack is not installed")


def _norm(x, weight):  # type: ignore[no-untyped-def]
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def _rotate(x):  # type: ignore[no-untyped-def]
    """Rotary embedding of (tokens, heads, width), the two halves of the width as one complex number."""
    tokens, _, width = x.shape
    angle = torch.arange(tokens)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    pairs = torch.complex(x[..., : width // 2], x[..., width // 2 :]) * turn
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def qwen1_logits(weights, ids):  # type: ignore[no-untyped-def]
    """Qwen-1's forward in float32: (tokens,) -> (tokens, vocabulary)."""
    x = weights["transformer.wte.weight"][ids]
    causal = torch.full((len(ids), len(ids)), float("-inf")).triu(1)
    for layer in range(LAYERS):
        part = {name.split(".", 3)[3]: w for name, w in weights.items() if name.startswith(f"transformer.h.{layer}.")}
        mixed = _norm(x, part["ln_1.weight"]) @ part["attn.c_attn.weight"].T + part["attn.c_attn.bias"]
        q, k, v = (third.view(-1, HEADS, HIDDEN // HEADS) for third in mixed.split(HIDDEN, dim=-1))
        scores = torch.einsum("qhd,khd->hqk", _rotate(q), _rotate(k)) / (HIDDEN // HEADS) ** 0.5 + causal
        heads = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(-1, HIDDEN)
        x = x + heads @ part["attn.c_proj.weight"].T
        y = _norm(x, part["ln_2.weight"])
        gate = torch.nn.functional.silu(y @ part["mlp.w2.weight"].T)
        x = x + (y @ part["mlp.w1.weight"].T * gate) @ part["mlp.c_proj.weight"].T
    return _norm(x, weights["transformer.ln_f.weight"]) @ weights["lm_head.weight"].T


def test_logits_equal_an_own_forward_of_qwen1(qwen1: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = ModelSpec(name=str(qwen1), source="local", cache_dir=tmp_path / "cache")
    folder = ensure_model(spec, output_dir=tmp_path)
    assert ensure_model(spec, output_dir=tmp_path) == folder
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    chat = [{"role": "user", "content": "你好，2024!"}]
    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert (ids[0], ids[-3:]) == (151644, [151644, 77091, 198])
    weights = {name: torch.from_numpy(value) for name, value in random_weights().items()}
    with torch.no_grad():
        expected, found = qwen1_logits(weights, ids), model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["bin", "old bin", "safetensors"])
def test_checkpoints_are_read_as_weights_only(qwen_tiktoken: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "legacy"
    folder.mkdir()
    write_qwen1(folder, qwen_tiktoken)
    for path in folder.glob("model*"):
        path.unlink()
    state = {name: torch.from_numpy(value).bfloat16() for name, value in random_weights().items()}
    tables = {
        "transformer.rotary_emb.inv_freq": torch.ones(4),
        "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8).bool(),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    from safetensors.torch import load_file, save_file

    if kind == "safetensors":
        save_file(state | tables, folder / "model.safetensors")
    else:
        torch.save(state | tables, folder / "pytorch_model.bin", _use_new_zipfile_serialization=kind == "bin")
    convert_folder(folder, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["model.layers.1.mlp.gate_proj.weight"], state["transformer.h.1.mlp.w2.weight"])
    assert written["model.layers.0.self_attn.k_proj.weight"].shape == (HIDDEN, HIDDEN)
    assert written["model.layers.0.mlp.up_proj.weight"].shape == (HALF, HIDDEN)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")) == []


class Hostile:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return exec, ("raise SystemExit('a pickle ran code')",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text(json.dumps(CONFIG))
    torch.save({"transformer.wte.weight": Hostile()}, tmp_path / "in" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be read as weights"):
        convert_folder(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def modern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2 model, its weights as safetensors."""
    folder = tmp_path_factory.mktemp("modern")
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
    write_random_model({**load_config("qwen2-tiny"), **small}, ["hello"], folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder and of those below."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _as_bin(source: Path, folder: Path, shards: int, **layout: object) -> dict[str, object]:
    """Copy a model with its matrices in bfloat16 and its norms in float32, as torch saved them."""
    from safetensors.torch import load_file

    shutil.copytree(source, folder)
    (folder / "model.safetensors").unlink()
    whole = {
        name: value if "norm" in name else value.bfloat16()
        for name, value in load_file(source / "model.safetensors").items()
    }
    names = sorted(whole)
    weight_map = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin" if shards > 1 else "pytorch_model.bin"
        part = {name: whole[name] for name in names[number::shards]}
        torch.save(part, folder / file, **layout)
        weight_map.update(dict.fromkeys(part, file))
    if shards > 1:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return whole


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("old", [False, True])
def test_the_bin_files_of_a_newer_model_are_converted_where_it_is_used(
    modern: Path, tmp_path: Path, shards: int, old: bool
) -> None:
    from safetensors.torch import load_file

    whole = _as_bin(modern, tmp_path / "model", shards, _use_new_zipfile_serialization=not old)
    (tmp_path / "model" / MORE_TEMPLATES).mkdir()
    (tmp_path / "model" / MORE_TEMPLATES / "tool_use.jinja").write_bytes(b"two")
    spec = ModelSpec(name=str(tmp_path / "model"), source="local", cache_dir=tmp_path / "cache")
    folder = ensure_model(spec, output_dir=tmp_path)
    found = {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
    assert found.keys() == whole.keys()
    assert all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in whole.items())
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    made = contents(folder)
    assert made[f"{MORE_TEMPLATES}/tool_use.jinja"] == b"two"
    for name in sorted(made):
        (folder / name).write_bytes(made[name][: len(made[name]) // 2])
        lines: list[str] = []
        assert ensure_model(spec, output_dir=tmp_path, progress=lines.append) == folder
        assert lines[0].startswith(f"preparing {folder.name} again: "), name
        assert contents(folder) == made
    again: list[str] = []
    assert ensure_model(spec, output_dir=tmp_path, progress=again.append) == folder and not again
    convert_folder(tmp_path / "model", tmp_path / "out")
    assert contents(tmp_path / "out").keys() == made.keys() - {RECORD}


@pytest.mark.parametrize("own", [True, False])
def test_a_tied_config_with_another_head_is_converted_as_untied(modern: Path, tmp_path: Path, own: bool) -> None:
    from safetensors.torch import load_file, save_file

    source = tmp_path / "in"
    shutil.copytree(modern, source)
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * (2 if own else 1)
    save_file(weights, source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    lines: list[str] = []
    convert_folder(source, tmp_path / "out", lines.append)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is not own
    assert any("tie_word_embeddings" in line for line in lines) is own
    kept = load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"]
    assert torch.equal(kept, weights["lm_head.weight"])


def _bytes_of(state: object, **layout: object) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream, **layout)
    return stream.getvalue()


def _compressed(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return stream.getvalue()


NORM = "model.norm.weight"
WIDE = (1 << 15, 1 << 15)  # 4 GiB of float32


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: _bytes_of({NORM: torch.zeros(1).expand(WIDE)}), "would become 4,294,967,296"),
        (lambda: _bytes_of({NORM: torch.zeros(1).expand(WIDE)}, _use_new_zipfile_serialization=False), "would become"),
        (lambda: _compressed(_bytes_of({NORM: torch.zeros(1 << 22)})), "is compressed"),
        (lambda: _bytes_of({NORM: bytearray(64)}), "bytearray"),
        (lambda: _bytes_of([torch.zeros(4)]), "cannot be read|a list, not a dict of tensors"),
        (lambda: _bytes_of(torch.zeros(4)), "a Tensor, not a dict of tensors"),
        (lambda: _bytes_of({}), "holds no tensors"),
        (lambda: _bytes_of({"state_dict": {NORM: torch.zeros(4)}}), "state_dict: is dict, not a tensor"),
        (lambda: _bytes_of({NORM: 3}), "norm.weight: is int, not a tensor"),
        (lambda: _bytes_of({3: torch.zeros(4)}), "3: is Tensor"),
        (lambda: _bytes_of({NORM: torch.eye(4).to_sparse()}), "rebuild_sparse"),
        (lambda: _bytes_of({NORM: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)}), "rebuild_q"),
        (lambda: _bytes_of({NORM: torch.zeros(4, dtype=torch.complex64)}), "complex"),
        (lambda: _bytes_of({NORM: torch.zeros(4, dtype=torch.int8)}), "int8 is not a supported weight type"),
        (lambda: _bytes_of({NORM: torch.zeros(4, device="meta")}), "meta"),
        (lambda: _bytes_of(torch.nn.Linear(2, 2)), "torch.nn.modules.linear.Linear"),
        (lambda: _bytes_of({NORM: torch.zeros(4)})[:-200], "cannot be read as weights"),
        (lambda: b"\x80\x04\x95" + b"\xff" * 8, "cannot be read as weights"),
        (lambda: b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00", "cannot be read as weights"),
        (lambda: b"PK\x05\x06" + bytes(18), "without a data.pkl"),
        (lambda: b"", "cannot be read as weights"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_bin_file_that_holds_no_plain_weights_is_refused(
    modern: Path, tmp_path: Path, make: Callable[[], bytes], words: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(modern, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(make())
    with pytest.raises(ModelError, match=rf"pytorch_model\.bin: .*({words})"):
        convert_folder(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_index_of_bin_files_cannot_reach_outside(modern: Path, tmp_path: Path) -> None:
    _as_bin(modern, tmp_path / "model", 1)
    (tmp_path / "model" / "pytorch_model.bin").rename(tmp_path / "secret.bin")
    (tmp_path / "model" / "pytorch_model.bin").symlink_to("../secret.bin")
    with pytest.raises(ModelError, match="link out of the model's folder"):
        convert_folder(tmp_path / "model", tmp_path / "out")
