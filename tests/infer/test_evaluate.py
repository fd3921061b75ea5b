"""Held-out loss equals transformers' own, and answers stand side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from qwen_job.cli.evaluate import evaluate as command
from qwen_job.errors import DataError, UsageError
from qwen_job.infer.columns import side_by_side, width_of, wrap
from qwen_job.infer.evaluate import evaluate
from tests.support.taught import ANSWER, CONVERSATION, QUESTION

pytestmark = pytest.mark.train
OTHER = {"conversations": [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "hello to you"}]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "held_out.json"
    path.write_text(json.dumps([OTHER, CONVERSATION], ensure_ascii=False))
    return path


def test_the_loss_is_the_mean_over_answer_tokens(taught: Path, data: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from qwen_job.data.encode import ChatTokenizer, encode_conversation
    from qwen_job.data.formats import parse_record

    result = evaluate(taught, data, samples=2, progress=print)
    model = AutoModelForCausalLM.from_pretrained(taught / "model")
    tokenizer = ChatTokenizer.load(taught / "model")
    total, count = 0.0, 0
    for record in (OTHER, CONVERSATION):
        one = encode_conversation(parse_record(record), tokenizer, system_prompt="You are a helpful assistant.")
        tokens = sum(label != -100 for label in one.labels)
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([one.input_ids]), labels=torch.tensor([one.labels])).loss
        total, count = total + loss.item() * tokens, count + tokens
    assert result.tokens == count
    assert result.after.loss == pytest.approx(total / count, rel=1e-4)
    assert result.before is not None and result.before.loss > result.after.loss
    assert [answer.after for answer in result.answers][1] == ANSWER
    assert result.answers[1].reference == ANSWER != result.answers[1].before


def test_the_command_prints_json_and_keeps_it_for_the_report(taught: Path, data: Path, tmp_path: Path) -> None:
    from qwen_job.report.page import write_report

    run = tmp_path / "run"
    shutil.copytree(taught, run)
    result = CliRunner().invoke(command, [str(run), "--data", str(data), "--no-before", "--json"])
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["before"] is None and values["conversations"] == 2
    assert json.loads((run / "evaluation.json").read_text()) == values
    assert f"<td>{QUESTION}</td>" in write_report(run).read_text()


def test_data_that_cannot_be_evaluated_is_named(taught: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('[{"conversations": [{"from": "user", "value": "x"}, {"from": "robot", "value": "y"}]}]')
    with pytest.raises(DataError, match=r"bad\.json: row 1"):
        evaluate(taught, bad, progress=print)


def test_without_data_a_run_s_own_is_measured_or_asked_for(taught: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--data FILE is required, because .* holds nothing out"):
        evaluate(taught, progress=print)
    with pytest.raises(UsageError, match="this is a model, not a run"):
        evaluate(taught / "model", progress=print)
    run = tmp_path / "run"
    shutil.copytree(taught, run)
    text = (run / "train.yaml").read_text()
    (run / "train.yaml").write_text(text.replace("train:\n", f"eval:\n  - path: {data}\n  train:\n", 1))
    assert evaluate(run, samples=0, before=False, progress=print).data == str(data)
    (run / "train.yaml").write_text(text.replace("train:\n", "eval_split: 0.1\n  train:\n", 1))
    with pytest.raises(UsageError, match=r"the run has no held-out\.jsonl"):
        evaluate(run, progress=print)


def test_wide_characters_take_two_columns() -> None:
    assert width_of("你好a") == 5
    assert wrap("我是小助手，很高兴", 8) == ["我是小助", "手，很高", "兴"]
    assert wrap("one two three", 8) == ["one two", "three"]
    lines = side_by_side({"a": "你好你好你好你好", "b": "x\ny"}, 22)
    assert lines == ["a           b", "-           -", "你好你好你  x", "好你好      y"]
