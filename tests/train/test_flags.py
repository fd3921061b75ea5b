"""The reference's command line: understood unchanged, and clear where it is wrong."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from qwen_job.errors import DataError, UsageError
from qwen_job.train.flag_sections import Hardware
from qwen_job.train.flags import config_from_flags, parse_flags

A100 = Hardware("cuda", (8, 0), True)
V100 = Hardware("cuda", (7, 0), True)
CPU = Hardware("cpu", None, False)
BASE = shlex.split("--model_name_or_path Qwen/Qwen-1_8B-Chat/ --data_path d.json --output_dir out")


def test_the_reference_job_of_the_readme() -> None:
    words = shlex.split(
        "--bf16 True --num_train_epochs 5 --per_device_train_batch_size 1 --gradient_accumulation_steps 16 "
        "--learning_rate 1e-5 --model_max_length 512 --lr_scheduler_type cosine --save_steps 10"
    )
    config, _, _ = config_from_flags([*BASE, *words], A100, 2)
    assert (config.precision, config.attention, config.fused_loss) == ("bf16", "varlen", "chunked")
    assert config.global_batch_size == 32 and config.training.num_train_epochs == 5.0
    assert config.model.name == "Qwen/Qwen-1_8B-Chat" and config.model.source == "modelscope"
    assert config.data.max_length == 512 and config.data.packing is False
    assert config.output_dir == Path("out").absolute()


def test_an_older_gpu_gets_what_it_can_do() -> None:
    config, _, _ = config_from_flags([*BASE, "--fp16", "True"], V100, 1)
    assert (config.precision, config.attention, config.fused_loss) == ("fp16", "varlen", "chunked")
    assert config_from_flags(BASE, V100, 1)[0].attention == "sdpa"  # fp32
    with pytest.raises(UsageError, match="use --fp16 True"):
        config_from_flags([*BASE, "--bf16", "True"], V100, 1)


def test_old_names_are_translated_and_said_once() -> None:
    flags = parse_flags(["--evaluation_strategy", "no", "--no_cuda"])
    assert flags.own == {"eval_strategy": "no", "use_cpu": True}
    assert sum("evaluation_strategy" in note for note in flags.notes) == 1


def test_what_has_no_effect_is_said() -> None:
    assert "memory-mapped" in parse_flags(["--lazy_preprocess", "True"]).notes[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rte", "1"], "did you mean .--learning_rate"),
        (["--bf16", "maybe"], "wants True or False"),
        (["--max_steps", "ten"], "wants a whole number"),
        (["--max_steps"], "wants a value"),
        (["--seed", "1", "--seed", "2"], "given twice"),
        (["stray"], "unexpected argument"),
        (["--use_lora", "True"], "fine-tunes all weights"),
        (["--bf16", "True", "--fp16", "True"], "exclude each other"),
        (["--deepspeed", "nowhere.json"], "no such file"),
        (["--deepspeed", "{broken"], "not JSON"),
    ],
)
def test_what_is_wrong_is_named(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config_from_flags([*BASE, *words], CPU, 1)


@pytest.mark.parametrize("words", [["--lr_scheduler_kwargs", "[" * 9000], ["--max_steps", "\x1b[2J" + "9a" * 9000]])
def test_what_is_wrong_is_cut_and_escaped(words: list[str]) -> None:
    with pytest.raises(UsageError) as found:
        config_from_flags([*BASE, *words], A100, 1)
    assert words[0] in str(found.value) and len(str(found.value)) < 300 and "\x1b" not in str(found.value)


@pytest.mark.parametrize("missing", ["--model_name_or_path", "--data_path", "--output_dir"])
def test_what_is_missing_is_named(missing: str) -> None:
    at = BASE.index(missing)
    with pytest.raises(UsageError, match=f"{missing} is required"):
        config_from_flags(BASE[:at] + BASE[at + 2 :], CPU, 1)


def test_equals_signs_and_bare_flags() -> None:
    flags = parse_flags(["--learning_rate=2e-5", "--gradient_checkpointing"])
    assert flags.training["learning_rate"] == 2e-5 and flags.own["gradient_checkpointing"] is True


def test_data_may_be_a_name() -> None:
    words = shlex.split("--model_name_or_path Qwen/Qwen-1_8B-Chat/ --data_path hf:owner/name --output_dir out")
    config, _, _ = config_from_flags(words, CPU, 1)
    assert [file.source for file in config.data.train] == ["hf:owner/name"]
    words[3] = "hf:name"
    with pytest.raises(DataError, match=r"data\.train\[0\]\.path: 'hf:name' names no data set"):
        config_from_flags(words, CPU, 1)


def test_evaluation_and_saving_strategies() -> None:
    words = shlex.split("--eval_data_path e.json --eval_strategy steps --eval_steps 7")
    config, _, _ = config_from_flags([*BASE, *words], CPU, 1)
    assert config.training.eval_steps == 7
    config, _, _ = config_from_flags([*BASE, "--save_strategy", "no"], CPU, 1)
    assert config.training.save_steps == 0
