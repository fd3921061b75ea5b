"""A model with its own chat template is trained with it, and keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.chat.cases import text_of
from tests.support.templated import (
    ANSWER,
    PLAIN,
    PLAIN_ANSWER,
    QUESTION,
    RESULT,
    SECOND_THOUGHT,
    THOUGHT,
    WEATHER,
    templated_model,
)
from tests.train import tiny

pytestmark = [pytest.mark.train, pytest.mark.slow]
CALL = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": None, "reasoning_content": THOUGHT, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": RESULT},
            {"role": "assistant", "content": ANSWER, "reasoning_content": SECOND_THOUGHT},
        ],
        "tools": [WEATHER],
    },
    {"messages": [{"role": "user", "content": PLAIN}, {"role": "assistant", "content": PLAIN_ANSWER}]},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a few steps, with tools, reasoning and a system prompt of the user's."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "data.json").write_text(json.dumps(ROWS * 4, ensure_ascii=False))
    start = templated_model(folder / "own", "qwen3", [text_of("qwen3"), json.dumps(ROWS, ensure_ascii=False)] * 2)
    changes = {
        "model__name": str(start),
        "model__source": "local",
        "data__system_prompt": None,
        "data__max_length": 1024,
    }
    code, output = tiny.run(tiny.write_run(folder / "run", world_size=1, **changes), processes=1)
    assert code == 0, output[-3000:]
    return folder / "run"


def test_the_template_is_kept_byte_for_byte(run: Path) -> None:
    assert (run / "model" / "chat_template.jinja").read_bytes() == text_of("qwen3").encode()
    assert "chat_template" not in json.loads((run / "model" / "tokenizer_config.json").read_text())


def test_an_answer_still_ends_at_im_end(run: Path) -> None:
    config = json.loads((run / "model" / "tokenizer_config.json").read_text())
    stops = json.loads((run / "model" / "generation_config.json").read_text())["eos_token_id"]
    ids = {
        token["content"]: token["id"]
        for token in json.loads((run / "model" / "tokenizer.json").read_text())["added_tokens"]
    }
    assert (config["eos_token"], stops[0]) == ("<|im_end|>", ids["<|im_end|>"])


def test_the_card_and_the_log_serve_it_with_tools_and_reasoning(run: Path) -> None:
    options = "--reasoning-parser qwen3 --enable-auto-tool-choice --tool-call-parser hermes"
    assert f"vllm serve path/to/model {options}" in (run / "model" / "README.md").read_text()
    assert "The chat template is the base model's own, byte for byte." in (run / "model" / "README.md").read_text()


def test_it_is_evaluated_with_its_template(run: Path, tmp_path: Path) -> None:
    from qwen_job.infer.evaluate import evaluate

    (tmp_path / "held_out.json").write_text(json.dumps(ROWS, ensure_ascii=False))
    result = evaluate(run, tmp_path / "held_out.json", samples=2, max_new_tokens=4, progress=print)
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    references = [(answer.prompt, answer.reference) for answer in result.answers]
    assert references == [(QUESTION, f"<think>\n{THOUGHT}\n</think>\n\n{call}"), (PLAIN, PLAIN_ANSWER)]
    assert result.before is not None and result.after.loss < result.before.loss
