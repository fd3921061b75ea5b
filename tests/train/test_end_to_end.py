"""Two processes, ZeRO-2, a random model: from train.yaml to a folder that stock transformers loads."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from qwen_job.infer.evaluate import evaluate
from tests.train import tiny

pytestmark = [pytest.mark.train, pytest.mark.slow]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of two epochs with held-out data, trained to the end."""
    folder = tmp_path_factory.mktemp("e2e") / "run"
    train_yaml = tiny.write_run(
        folder, data__eval_split=0.2, training__eval_steps=5, training__report_to=["tensorboard"]
    )
    code, output = tiny.run(train_yaml)
    assert code == 0, output
    (folder / "output.txt").write_text(output)
    return folder


def test_the_loss_falls_and_every_step_is_recorded(finished: Path) -> None:
    steps = tiny.metrics(finished, "step")
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5
    assert all(line["tokens"] > 0 and line["memory_bytes"] > 0 for line in steps)


def test_the_held_out_rows_are_a_file_that_evaluate_measures(finished: Path) -> None:
    held_out = (finished / "held-out.jsonl").read_text("utf-8").splitlines()
    trained = {line["step"]: line["loss"] for line in tiny.metrics(finished, "eval")}
    result = evaluate(finished, samples=1, before=False, max_new_tokens=4, progress=print)
    assert result.conversations == len(held_out) > 0 and result.data == str(finished / "held-out.jsonl")
    assert result.after.loss == pytest.approx(trained[max(trained)], rel=1e-4)


def test_the_schedule_is_a_cosine_with_warmup(finished: Path) -> None:
    rates = [line["learning_rate"] for line in tiny.metrics(finished, "step")]
    top = rates.index(max(rates))
    assert top == 1 and max(rates) == pytest.approx(5e-3)  # 10% of ten steps, from zero
    assert all(a > b for a, b in zip(rates[top:], rates[top + 1 :], strict=False))
    assert rates[-1] < 0.1 * max(rates)


def test_what_the_run_folder_holds(finished: Path) -> None:
    done = json.loads((finished / "done.json").read_text())
    assert done["step"] == done["total_steps"] == len(tiny.metrics(finished, "step"))
    assert done["eval_loss"] == tiny.metrics(finished, "eval")[-1]["loss"]
    assert json.loads((finished / "heartbeat").read_text())["state"] == "done"
    assert list(finished.glob("events.*"))
    assert len(list((finished / "checkpoints").glob("step-*"))) == 2  # save_total_limit
    assert [line["step"] for line in tiny.metrics(finished, "save")][-1] == done["step"]


def test_the_model_loads_without_remote_code_and_stops_at_the_end_of_a_turn(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    stops = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
    assert model.generation_config.eos_token_id == stops
    config = json.loads((finished / "model" / "config.json").read_text())
    assert config["eos_token_id"] == stops and tokenizer.eos_token == "<|im_end|>"
    assert config["rope_theta"] == 10000.0 and "auto_map" not in config
    assert len({path.stat().st_mode for path in (finished / "model").iterdir()}) == 1, "others may read the weights too"


def test_a_finished_run_is_not_run_again(finished: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    code, output = tiny.run(finished / "train.yaml")
    assert code == 0 and "is complete" in output
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_the_reference_command_line_runs_under_torchrun(tmp_path: Path) -> None:
    import subprocess

    tiny.write_run(tmp_path / "spare")
    (tmp_path / "zero2.json").write_text(json.dumps(REFERENCE_ZERO2))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "qwen_job.train", "--model_name_or_path", str(tmp_path / "tiny.yaml")]
    command += ["--model_source", "random", "--data_path", str(tmp_path / "data.json"), "--bf16", "False"]
    command += ["--output_dir", str(tmp_path / "out"), *REFERENCE_FLAGS, "--deepspeed", str(tmp_path / "zero2.json")]
    done = subprocess.run(
        command,
        env=tiny.environment(QWEN_JOB_CACHE=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--evaluation_strategy is now called --eval_strategy" in done.stderr
    assert "scheduler block" in done.stderr
    rates = [line["learning_rate"] for line in tiny.metrics(tmp_path / "out", "step")]
    assert len(rates) == 3 and rates[-1] < rates[1]
    assert (tmp_path / "out" / "train.yaml").exists() and (tmp_path / "out" / "done.json").exists()


REFERENCE_FLAGS = shlex.split(
    "--num_train_epochs 5 --max_steps 3 --per_device_train_batch_size 1 --per_device_eval_batch_size 1 "
    "--gradient_accumulation_steps 4 --evaluation_strategy no --save_strategy steps --save_steps 1000 "
    "--save_total_limit 10 --learning_rate 1e-5 --weight_decay 0.1 --adam_beta2 0.95 --warmup_ratio 0.01 "
    "--lr_scheduler_type cosine --logging_steps 1 --report_to none --model_max_length 128 "
    "--lazy_preprocess True --gradient_checkpointing True --use_lora False"
)

# The shape of the configuration that the reference is used with: everything "auto", and a scheduler of its own.
REFERENCE_ZERO2 = {
    "fp16": {"enabled": "auto", "loss_scale": 0},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {
        "type": "WarmupLR",
        "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"},
    },
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "none", "pin_memory": True},
        "allgather_partitions": True,
        "allgather_bucket_size": 2e8,
        "overlap_comm": True,
        "reduce_scatter": True,
        "reduce_bucket_size": 2e8,
        "contiguous_gradients": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 100,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}


def test_a_server_frames_a_chat_as_training_did(finished: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from qwen_job.data.encode import ChatTokenizer, encode_prompt
    from qwen_job.models.template_files import write_template

    shutil.copytree(finished / "model", tmp_path / "model")
    turns = [("user", "Count {{ 1 }}"), ("assistant", "one"), ("user", "好 {% x %}")]
    chat = [{"role": role, "content": text} for role, text in turns]
    for prompt in (None, "", 'Say "no" to {{ x }} and }} {% raw %}\n两行\\ end'):
        if prompt is not None:
            write_template(tmp_path / "model", tmp_path / "model", "chatml", prompt)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        trained = "You are a helpful assistant." if prompt is None else prompt
        assert asked == encode_prompt(turns, ChatTokenizer.load(tmp_path / "model"), system_prompt=trained)


def _difficult_source(folder: Path, finished: Path) -> Path:
    """Copy the start model and give it what published and edited folders have: each would spoil the export."""
    import numpy
    from safetensors.numpy import load_file, save_file

    source = next((finished.parent / "cache").rglob("config.json")).parent
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = numpy.flip(weights["lm_head.weight"], 0).copy()
    save_file(weights, folder / "model.safetensors")

    def change(name: str, **values: object) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | values))

    change("config.json", tie_word_embeddings=True, temperature=0.5, eos_token_id=7)
    change("generation_config.json", do_sample=False, top_p=0.5, length_penalty=2.0, max_new_tokens=512,
           eos_token_id=9, repetition_penalty=1.1, num_return_sequences=3)  # fmt: skip
    change("tokenizer_config.json", eos_token="<|endoftext|>")
    change("special_tokens_map.json", eos_token="<|endoftext|>")
    return folder


def test_a_source_that_transformers_would_not_write_back_is_mended_and_said(finished: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    source = _difficult_source(tmp_path / "source", finished)
    train_yaml = tiny.write_run(
        tmp_path / "run", 0, world_size=1, training__max_steps=2, model__name=str(source), model__source="local"
    )
    code, output = tiny.run(train_yaml, processes=1)
    assert code == 0, output
    said = output.partition("step 1")[0]
    assert all(name in said for name in ("temperature", "top_p", "length_penalty", "max_new_tokens", "num_return"))
    saved = tmp_path / "run" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    stops = [*tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>", "<|endoftext|>"]), 9, 7]
    settings = json.loads((saved / "generation_config.json").read_text())
    assert settings["eos_token_id"] == stops and settings["repetition_penalty"] == 1.1
    config = json.loads((saved / "config.json").read_text())
    assert (config["eos_token_id"], config["tie_word_embeddings"]) == (stops, False)
    assert tokenizer.eos_token == "<|im_end|>"
    assert json.loads((saved / "special_tokens_map.json").read_text())["eos_token"] == "<|im_end|>"
    assert not model.lm_head.weight.equal(model.model.embed_tokens.weight)
    written = GenerationConfig.from_pretrained(saved)
    written.temperature = 0.6 if written.do_sample else written.temperature
    written.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
