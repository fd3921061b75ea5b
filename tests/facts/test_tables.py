"""Facts: every shipped file loads, parameter totals are the published ones, wrong names and configs say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from qwen_job.errors import JobError, ModelError
from qwen_job.facts import fact
from qwen_job.facts.hardware import gpu_from_mapping, gpu_names, load_gpu
from qwen_job.facts.lookup import UnknownName, find
from qwen_job.facts.model_shapes import load_model_shape, model_shape_from_config
from qwen_job.facts.thinking import Thinking, known_thinking
from qwen_job.facts.untrained import why_untrained

MODELS = sorted(path for path in fact("models").glob("*.yaml") if "parameters" in yaml.safe_load(path.read_text()))
QWEN2: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_parameters_are_exactly_the_published_total(path: Path) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert load_model_shape(config["name"]).num_parameters == config["parameters"]
    assert config["source"] == "random" or config["source"].startswith("https://")
    assert known_thinking(config["name"]) in (*get_args(Thinking), None)


def test_the_reference_model() -> None:
    shape = load_model_shape("Qwen/Qwen-1_8B-Chat")
    assert (shape.num_parameters, shape.intermediate_size) == (1_836_828_672, 5504)
    assert shape.num_matmul_parameters == 1_525_415_936
    assert shape.max_position_embeddings == 8192


@pytest.mark.parametrize(
    "name", ["qwen2.5-7b-instruct", "Qwen2.5-7B-Instruct", "qwen/QWEN2.5-7B-Instruct", "Qwen/Qwen2.5-7B"]
)
def test_a_model_answers_to_its_names(name: str) -> None:
    assert load_model_shape(name).name == "Qwen/Qwen2.5-7B-Instruct"


@pytest.mark.parametrize("name", gpu_names())
def test_every_gpu_has_sensible_numbers_and_a_source(name: str) -> None:
    gpu = load_gpu(name)
    assert gpu.source
    if gpu.is_cpu:
        assert gpu.memory_bytes is None and gpu.of_cores(4).peak_tflops == {
            "fp32": pytest.approx(4 * gpu.peak_tflops["fp32"])
        }
        return
    assert gpu.memory_bytes and 15 * 2**30 < gpu.memory_bytes < 142 * 2**30
    assert ("bf16" in gpu.peak_tflops) == (gpu.compute_capability >= 8.0)
    assert gpu.peak_tflops["fp16"] > gpu.peak_tflops["fp32"]


def test_gpu_names_are_distinct() -> None:
    answers = [name.lower() for gpu in map(load_gpu, gpu_names()) for name in (gpu.name, *gpu.aliases)]
    assert len(answers) == len(set(answers))


@pytest.mark.parametrize(
    ("name", "gpu"), [("a100", "A100-80G"), ("v100", "V100-32G"), ("NVIDIA H200", "H200-141G"), ("cpu", "CPU")]
)
def test_a_gpu_answers_to_its_aliases(name: str, gpu: str) -> None:
    assert load_gpu(name).name == gpu


def test_a_site_may_describe_its_own_gpu(tmp_path: Path) -> None:
    (tmp_path / "x1.yaml").write_text("{name: X1, compute_capability: 9.0, memory_bytes: 1000}")
    assert load_gpu("x1", search=[tmp_path]).memory_bytes == 1000


def test_an_unknown_gpu_names_its_neighbours() -> None:
    with pytest.raises(UnknownName, match=r"'A100-60G' is not known: did you mean .*A100-80G.*write its figures"):
        load_gpu("A100-60G")


@pytest.mark.parametrize("name", ["../a100-80g", "", "/etc/passwd", "a100-80g\n", "*", "a" * 300])
def test_a_name_is_never_a_path(name: str) -> None:
    if name.strip() == "a100-80g":
        assert load_gpu(name).name == "A100-80G"
        return
    with pytest.raises(UnknownName):
        load_gpu(name)
    with pytest.raises(UnknownName):
        find(name, [fact("models")], "model")


def test_an_unknown_model_names_its_neighbours() -> None:
    with pytest.raises(UnknownName, match=r"did you mean .*Qwen2\.5-7B-Instruct.*config\.json"):
        load_model_shape("Qwen/Qwen2.5-7B-Instrukt")


def test_a_gpu_by_its_numbers_needs_name_and_capability() -> None:
    assert gpu_from_mapping({"name": "X", "compute_capability": 8.6}, "job.yaml").memory_bytes is None
    with pytest.raises(JobError, match=r"job\.yaml: compute_capability: missing"):
        gpu_from_mapping({"name": "X"}, "job.yaml")
    with pytest.raises(JobError, match="not above 0"):
        gpu_from_mapping({"name": "X", "compute_capability": 8, "memory_bytes": -1}, "job.yaml")


def test_a_local_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN2))
    assert load_model_shape(tmp_path).num_parameters == 494_032_768


@pytest.mark.parametrize(
    "field", [key for key in QWEN2 if key not in ("model_type", "tie_word_embeddings", "num_key_value_heads")]
)
def test_a_missing_field_is_named_with_its_file(tmp_path: Path, field: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in QWEN2.items() if key != field}))
    with pytest.raises(ModelError, match=rf"config\.json: {field}: missing"):
        load_model_shape(tmp_path)


@pytest.mark.parametrize("value", [0, -1, 1.5, "24", True, [24]])
def test_an_impossible_field_is_refused(value: object) -> None:
    with pytest.raises(ModelError, match="num_hidden_layers: must be a whole number above 0"):
        model_shape_from_config({**QWEN2, "num_hidden_layers": value}, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 64}, "num_experts: a mixture of experts"),
        ({"model_type": "qwen9_moe"}, "model_type: a mixture of experts of type 'qwen9_moe'; known are qwen2_moe"),
        ({"layer_types": ["linear_attention"]}, "layer_types: qwen2 has only full_attention and sliding_attention"),
        ({"model_type": "qwen3_moe", "num_experts": 4}, "num_experts_per_tok: missing"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide 14"),
    ],
)
def test_a_decoder_of_another_kind_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        model_shape_from_config({**QWEN2, **change}, "x")


def test_a_multimodal_config_is_refused() -> None:
    with pytest.raises(ModelError, match="text_config: a multimodal model"):
        model_shape_from_config({"model_type": "qwen9_vl", "text_config": QWEN2}, "x")


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_broken_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model_shape(tmp_path)


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: does not exist"):
        load_model_shape(tmp_path)


def test_a_dense_qwen_that_nobody_has_heard_of() -> None:
    shape = model_shape_from_config(
        {**QWEN2, "model_type": "qwen7", "head_dim": 128, "tie_word_embeddings": False}, "x"
    )
    assert (shape.qk_norm, shape.attention_bias, shape.query_size) == (True, False, 14 * 128)
    layer = 2 * 896 * (14 + 2) * 128 + 3 * 896 * 4864 + 2 * 896 + 2 * 128
    assert shape.num_parameters == 24 * layer + 2 * 151936 * 896 + 896


def test_qwen3_with_biases_has_one_on_the_output_too() -> None:
    plain = model_shape_from_config({**QWEN2, "model_type": "qwen3"}, "x")
    biased = model_shape_from_config({**QWEN2, "model_type": "qwen3", "attention_bias": True}, "x")
    assert biased.num_parameters - plain.num_parameters == 24 * (896 + 2 * 128 + 896)


def test_a_config_file_may_be_named_itself(tmp_path: Path) -> None:
    file = tmp_path / "qwen9.json"
    file.write_text(json.dumps(QWEN2))
    assert load_model_shape(file).num_hidden_layers == 24


@pytest.mark.parametrize("text", ["a: [", "- 1", "\x00"])
def test_a_broken_fact_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "x1.yaml").write_text(text)
    with pytest.raises(JobError, match=r"x1\.yaml"):
        load_gpu("x1", search=[tmp_path])


def test_the_runs_of_a_sweep_read_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    really = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, **options: reads.append(self) or really(self, **options))
    for _ in range(3):
        with pytest.raises(UnknownName):
            load_model_shape("acme/no-such-model")
    assert len(reads) == len(set(reads))
    mine = tmp_path / "mine.yaml"
    for capability in ("8.0", "10.0"):  # a file that changed is read anew
        mine.write_text(f"name: mine\ncompute_capability: {capability}\n")
        assert load_gpu("mine", [tmp_path]).compute_capability == float(capability)


# As transformers 5.23 counts the models built on the meta device, and of these the experts that a token passes.
@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("Qwen/Qwen3-30B-A3B", 30_532_122_624, 3_353_032_704),
        ("Qwen/Qwen3.6-35B-A3B", 34_660_610_688, 3_454_988_928),
        ("Qwen/Qwen3.8-27B", 26_895_998_464, 26_895_998_464),
        ("Qwen/Qwen1.5-MoE-A2.7B-Chat", 14_315_784_192, 2_689_173_504),
    ],
)
def test_parameters_in_total_and_active(name: str, total: int, active: int) -> None:
    shape = load_model_shape(name)
    assert (shape.num_parameters, shape.active_parameters) == (total, active)


def test_the_largest_model_is_its_published_files_without_multi_token_prediction() -> None:
    shape = load_model_shape("Qwen/Qwen3.8-2.4T-A95B")
    experts = shape.experts
    assert experts is not None
    attention = 2 * shape.hidden_size * shape.query_size + 2 * shape.hidden_size * shape.key_value_size
    attention += shape.query_size * shape.hidden_size + 2 * shape.head_dim
    mixture = experts.count * (shape.expert_parameters + shape.hidden_size)
    shared = 3 * shape.hidden_size * experts.shared_width + shape.hidden_size
    predicting = attention + mixture + shared + 5 * shape.hidden_size + 2 * shape.hidden_size**2
    assert 2 * (shape.num_parameters + predicting) == 4_892_365_451_008  # total_size of the published index


def test_of_a_vision_language_config_the_text_model_counts() -> None:
    text = {key: value for key, value in yaml.safe_load(fact("models", "qwen3.5-0.8b.yaml").read_text()).items()
            if key not in ("name", "aliases", "architecture", "source", "parameters", "thinking")}  # fmt: skip
    tied = text.pop("tie_word_embeddings")
    whole = {"model_type": "qwen3_5", "text_config": text, "tie_word_embeddings": tied, "vision_config": {"depth": 12}}
    assert model_shape_from_config(whole, "x").num_parameters == 752_393_024


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "a vision-language model"),
        ("Qwen/Qwen-VL-Chat", "a vision-language model"),
        ("Qwen/QVQ-72B-Preview", "a vision-language model"),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct-FP8", "a vision-language model"),
        ("Qwen/Qwen2.5-Omni-7B", "a model for speech or sound"),
        ("Qwen/Qwen2-Audio-7B-Instruct", "a model for speech or sound"),
        ("Qwen/Qwen3-Embedding-8B", "a model for retrieval"),
        ("Qwen/Qwen2.5-Math-PRM-7B", "a reward model"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "of model_type qwen3_next"),
        ("Qwen/Qwen3.8-Flash-Next", "of model_type qwen4_exp"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "has no <|im_start|>"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "is quantized; use the full-precision model, Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen-7B-Chat-Int4", "is quantized; use the full-precision model, Qwen/Qwen-7B-Chat"),
        ("Qwen/Qwen3.8-27B-FP8", "is quantized; use the full-precision model, Qwen/Qwen3.8-27B"),
    ],
)
def test_an_official_model_that_cannot_be_trained_says_why(name: str, message: str) -> None:
    assert message in why_untrained(name)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_no_model_with_facts_is_refused_by_its_name(path: Path) -> None:
    facts = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [why_untrained(name) for name in (facts["name"], *facts.get("aliases", ()))] == [""] * (
        1 + len(facts.get("aliases", ()))
    )


@pytest.mark.parametrize("name", ["acme/qwen-omni-of-text", "acme/Qwen3-8B-AWQ", "Qwen/Qwen9-8B"])
def test_others_are_not_judged_by_their_name(name: str) -> None:
    assert why_untrained(name) == ""


def test_names_of_models_are_distinct() -> None:
    every = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in MODELS]
    names = [name.lower() for facts in every for name in (facts["name"], *facts.get("aliases", ()))]
    assert len(names) == len(set(names))
