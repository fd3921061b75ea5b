"""From train.yaml's model section to a folder: random models are the same everywhere, folders are checked."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_job.data.sample import sample_texts
from qwen_job.errors import EnvironmentFault, ModelError
from qwen_job.facts.weights import count_parameters, expected_shapes
from qwen_job.models import ensure_model
from qwen_job.models.completeness import check_folder, stop_ids
from qwen_job.models.random_init import initial_key, load_config, train_tokenizer, write_random_model
from qwen_job.run.sections import ModelSpec
from qwen_job.storage import cache_folder

CONVERSATIONS = [
    {"conversations": [{"from": "user", "value": "你好"}, {"from": "assistant", "value": "你好！我是小助手。"}]},
    {"conversations": [{"from": "user", "value": "hello there"}, {"from": "assistant", "value": 'hello "you"\n'}]},
]
# The bytes of the demo's weights, whatever the machine and the version of numpy.
WEIGHTS_SHA256 = "2a5313713d33544e9e4999e562d5c959ebf747f01ac248b47cdd72f2b50d788c"
SECTION = {"name": "qwen2-tiny", "source": "random", "revision": None, "cache_dir": None}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.json"
    path.write_text(json.dumps(CONVERSATIONS, ensure_ascii=False))
    return path


@pytest.fixture(scope="module")
def tiny(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    spec = ModelSpec.read({**SECTION, "cache_dir": str(cache)})
    return ensure_model(spec, output_dir=cache, texts=lambda: sample_texts([data]))


def test_a_random_model_is_complete_and_the_same_bytes_everywhere(tiny: Path) -> None:
    config = check_folder(tiny)
    assert count_parameters(expected_shapes(config)) == 5_313_792
    assert hashlib.sha256((tiny / "model.safetensors").read_bytes()).hexdigest() == WEIGHTS_SHA256


def test_another_process_with_other_threads_writes_the_same(tiny: Path, data: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; cache = Path(sys.argv[1]);"
        "from qwen_job.models import *; from qwen_job.run.sections import ModelSpec;"
        "from qwen_job.data.sample import sample_texts;"
        "spec = ModelSpec(name='qwen2-tiny', source='random', cache_dir=cache);"
        "print(ensure_model(spec, output_dir=cache, texts=lambda: sample_texts([Path(sys.argv[2])])))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path, data],
        capture_output=True, text=True, check=True, timeout=60, env={"RAYON_NUM_THREADS": "7", "PYTHONHASHSEED": "3"},
    )  # fmt: skip
    other = Path(run.stdout.strip())
    assert other.name == tiny.name
    for path in tiny.iterdir():
        assert (other / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_tokenizer_speaks_chatml(tiny: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    text = "<|im_start|>user\n你好，world 😀<|im_end|>\n"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    end = json.loads((tiny / "config.json").read_text())["eos_token_id"]
    assert ids.count(end) == 1 == ids.count(end - 1)
    assert stop_ids(tiny) == [end - 2, end - 1, end]


def test_other_data_or_another_config_is_another_model() -> None:
    config = load_config("qwen2-tiny")
    keys = {initial_key(config, ["a"]), initial_key(config, ["b"]), initial_key({**config, "vocab_size": 1}, ["a"])}
    assert len(keys) == 3


def test_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("architecture: Qwen2ForCausalLM\nrms_norm_eps: 1e-6\nrope_scaling: {factor: 4E+0, type: yarn}\n")
    config = load_config(str(path))
    assert (config["rms_norm_eps"], config["rope_scaling"]) == (1e-6, {"factor": 4.0, "type": "yarn"})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("initializer_range: much", "initializer_range"),
        ("num_hidden_layers: 1000000000", "num_hidden_layers"),
        ("rope_scaling: {type: mystery}", "rope_scaling"),
        ("x: " + "[" * 20_000, "cannot be read as YAML"),
    ],
)
def test_a_random_model_of_an_impossible_shape_is_refused(tmp_path: Path, line: str, words: str) -> None:
    text = "\n".join(f"{key}: {json.dumps(value)}" for key, value in load_config("qwen2-tiny").items())
    path = tmp_path / "own.yaml"
    path.write_text(f"architecture: Qwen2ForCausalLM\n{text}\n{line}\n")
    with pytest.raises(ModelError, match=words):
        write_random_model(load_config(str(path)), ["hello"], tmp_path)


def test_a_vocabulary_keeps_to_its_size() -> None:
    vocabulary, merges = train_tokenizer(["low lower lowest"] * 3, 260)
    assert len(vocabulary) == 260 == 256 + len(merges)
    assert list(vocabulary.values()) == list(range(260))


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QWEN_JOB_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "models"
    monkeypatch.delenv("QWEN_JOB_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "qwen-job" / "models"


def local(folder: Path) -> Path:
    return ensure_model(
        ModelSpec(name=str(folder), source="local", cache_dir=folder.parent / "cache"), output_dir=folder.parent / "run"
    )


def test_a_native_folder_is_used_where_it_lies(tiny: Path) -> None:
    assert local(tiny) == tiny


def test_a_relative_folder_is_found_beside_the_run(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "my-model")
    spec = ModelSpec(name="my-model", source="local", cache_dir=tmp_path / "cache")
    assert ensure_model(spec, output_dir=tmp_path / "run") == tmp_path / "my-model"


def _edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def _change(folder: Path, name: str) -> None:
    match name:
        case "no config":
            (folder / "config.json").unlink()
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "broken json":
            (folder / "config.json").write_text("{")
        case "more layers":
            _edit(folder, num_hidden_layers=5)
        case "other width":
            _edit(folder, intermediate_size=705)
        case "no size":
            _edit(folder, hidden_size=None)
        case "a llama":
            _edit(folder, model_type="llama")
        case "no chat model":
            _edit(folder, architectures=["Qwen2ForSequenceClassification"])
        case "odd heads":
            _edit(folder, num_key_value_heads=3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no config", "config.json: does not exist"),
        ("no weights", r"has no \*\.safetensors"),
        ("no tokenizer", "tokenizer.json: does not exist"),
        ("broken json", "cannot be read as JSON"),
        ("more layers", "layers.4.input_layernorm.weight is in no safetensors file"),
        ("other width", r"\(704, 256\) where config.json asks for \(705, 256\)"),
        ("no size", "hidden_size: expected a positive whole number"),
        ("a llama", "'llama' is not supported"),
        ("no chat model", "must hold 'Qwen2ForCausalLM'"),
        ("odd heads", "do not divide"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(tiny: Path, tmp_path: Path, damage: str, message: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    _change(folder, damage)
    with pytest.raises(ModelError, match=message):
        local(folder)


def test_what_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a folder"):
        local(tmp_path / "nothing")
    with pytest.raises(ModelError, match="cannot be read: File name too long"):
        local(tmp_path / ("x" * 300))
    with pytest.raises(ModelError, match=r"known: .*qwen2-tiny"):
        load_config("qwen9")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, data: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        ensure_model(
            ModelSpec(name="qwen2-tiny", source="random", cache_dir=tmp_path / "file"),
            output_dir=tmp_path,
            texts=lambda: sample_texts([data]),
        )


# Mixtures of experts and hybrids are planned, and not loaded yet.
NATIVE_FACTS = [
    path
    for path in sorted(Path(__file__).parents[2].glob("qwen_job/facts/models/qwen[123]*.yaml"))
    if "_moe" not in path.read_text()
]


@pytest.mark.parametrize("path", NATIVE_FACTS, ids=lambda p: p.stem)
def test_parameters_of_every_native_model_are_those_published(path: Path) -> None:
    import yaml

    facts = yaml.safe_load(path.read_text())
    assert count_parameters(expected_shapes(load_config(path.stem))) == facts["parameters"]
