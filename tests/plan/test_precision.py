"""Precision, attention and loss by device, and what the device cannot do."""

# ruff: noqa: E501 - tables, one case a line
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import plan, problems


@pytest.mark.parametrize(
    ("gpu", "train", "precision", "attention", "loss"),
    [
        ("A100-80G", "", "bf16", "varlen", None),
        ("H100-80G", "fp16: true", "fp16", "varlen", None),
        ("A100-80G", "bf16: false", "fp32", "sdpa", None),
        ("V100-32G", "", "fp16", "varlen", "chunked"),
        ("V100-32G", "fp16: false", "fp32", "sdpa", None),
        ("V100-32G", "bf16: false", "fp16", "varlen", "chunked"),
        ("V100-32G", "attention: sdpa", "fp16", "sdpa", "chunked"),
        ("CPU", "", "fp32", "sdpa", "none"),
        ("CPU", "bf16: true", "bf16", "sdpa", "none"),
        ("A100-80G", "attention: eager, fused_loss: liger", "bf16", "eager", "liger"),
    ],
)
def test_the_device_decides(
    tmp_path: Path, gpu: str, train: str, precision: str, attention: str, loss: str | None
) -> None:
    sets = (f"cluster.gpu={gpu}", "model=Qwen/Qwen1.5-0.5B-Chat")
    made = plan(tmp_path, f"train: {{{train}}}\n", *sets)
    assert (made.precision, made.attention) == (precision, attention)
    assert loss in (None, made.fused_loss)


@pytest.mark.parametrize(
    ("gpu", "train", "message"),
    [
        ("V100-32G", "bf16: true", "train.bf16: V100-32G (compute capability 7.0) has no bf16; remove the line, or write"),
        ("A100-80G", "bf16: true, fp16: true", "train.fp16: bf16 and fp16 are both true; keep one"),
        ("CPU", "fp16: true", "train.fp16: DeepSpeed has no fp16 on a CPU; remove the line"),
        ("V100-32G", "fp16: false, attention: varlen", "train.attention: varlen needs a GPU and half precision, not V100-32G in fp32"),
        ("CPU", "attention: varlen", "train.attention: varlen needs a GPU and half precision, not CPU in fp32; write sdpa"),
        ("A100-80G", "bf16: false, attention: varlen", "not A100-80G in fp32; write sdpa"),
        ("V100-32G", "fused_loss: liger", "train.fused_loss: Liger needs Triton and compute capability 8.0 or more"),
    ],
)  # fmt: skip
def test_what_the_device_cannot_do_is_refused(tmp_path: Path, gpu: str, train: str, message: str) -> None:
    found = problems(tmp_path, f"train: {{{train}}}\n", f"cluster.gpu={gpu}")
    assert len(found) == 1 and message in found[0]


@pytest.mark.parametrize(
    ("fields", "train", "expected"),
    [
        ({"attention_dropout": 0.1}, "", "sdpa"),
        ({"attention_dropout": 0.1}, "attention: varlen", "train.attention: varlen has no dropout"),
        ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, "", "varlen"),
        ({"final_logit_softcapping": 30.0}, "", "model.name: "),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "model_max_length: 512", "varlen"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "model_max_length: 513",
            "train.model_max_length: 513 tokens",
        ),
    ],
)
def test_a_model_folder_has_a_say_in_the_kernel(
    tmp_path: Path, fields: dict[str, Any], train: str, expected: str
) -> None:
    (tmp_path / "model").mkdir()
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"model_type": "qwen2", "vocab_size": 512, "max_position_embeddings": 512, "num_key_value_heads": 2}
    (tmp_path / "model" / "config.json").write_text(json.dumps({**shape, **more, **fields}))
    text, sets = f"train: {{{train or 'model_max_length: 128'}}}\n", (f"model={tmp_path}/model",)
    if expected in ("varlen", "sdpa"):
        assert plan(tmp_path, text, *sets).attention == expected
    else:
        assert any(expected in problem for problem in problems(tmp_path, text, *sets))


@pytest.mark.parametrize(
    ("gpu", "text", "expected", "reason"),
    [
        ("H100-80G", "", "auto", "where the node has a C compiler"),
        ("A100-80G", "train: {torch_compile: auto}\n", "auto", "where the node has a C compiler"),
        ("A100-80G", "train: {torch_compile: false}\n", False, "written in the job"),
        ("V100-32G", "train: {torch_compile: true}\n", True, "written in the job"),
        ("V100-32G", "", False, "compute capability 7.0 < 8.0"),
        ("CPU", "", False, "no GPU"),
        ("H100-80G", "deepspeed: {zero_stage: 3}\n", False, "ZeRO-3 gathers weights inside a layer"),
    ],
)
def test_layers_are_compiled_where_it_pays(tmp_path: Path, gpu: str, text: str, expected: object, reason: str) -> None:
    made = plan(tmp_path, text, f"cluster.gpu={gpu}", "model=Qwen/Qwen1.5-0.5B-Chat")
    (decision,) = [one for one in made.decisions if one.field == "train.torch_compile"]
    assert made.torch_compile == decision.value == expected
    assert reason in decision.reason


def test_rows_that_are_not_packed_are_not_compiled_by_default(tmp_path: Path) -> None:
    made = plan(tmp_path, "", "cluster.gpu=H100-80G", "model=Qwen/Qwen1.5-0.5B-Chat", "data.packing=false")
    assert made.torch_compile is False
