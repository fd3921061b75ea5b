"""Small model folders as Qwen's later ones are: a chat template of their own, and tokens for reasoning and calls."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from tests.chat.cases import maker, text_of
from tests.support.tiny_models import MODEL

WORDS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


def templated_model(folder: Path, template: str, texts: Iterable[str], **shape: Any) -> Path:
    """Write a random model with the named template; its tokenizer is trained on ``texts``. Returns its folder."""
    from qwen_job.models import ensure_model
    from qwen_job.run.sections import ModelSpec

    folder.mkdir(parents=True, exist_ok=True)
    described = folder / "shape.yaml"
    described.write_text(yaml.safe_dump({**MODEL, "vocab_size": 1024, "max_position_embeddings": 2048, **shape}))
    section = {"name": str(described), "source": "random", "revision": None, "cache_dir": str(folder / "cache")}
    start = ensure_model(ModelSpec.read(section), output_dir=folder, texts=lambda: list(texts))
    model = folder / "start"
    shutil.copytree(start, model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    del config["chat_template"]
    config["added_tokens_decoder"] |= add_words(model / "tokenizer.json")
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    (model / "chat_template.jinja").write_text(text_of(template), encoding="utf-8")
    return model


def add_words(path: Path) -> dict[str, Any]:
    """Add what Qwen3's tokenizers have besides ChatML's tokens: words that are no control tokens.

    Returns them as tokenizer_config.json describes them.
    """
    content = json.loads(path.read_text())
    first = max(token["id"] for token in content["added_tokens"]) + 1
    like = {key: value for key, value in content["added_tokens"][0].items() if key not in ("id", "content")}
    added = {str(first + number): {"content": word, **like, "special": False} for number, word in enumerate(WORDS)}
    content["added_tokens"] += [{"id": int(number), **token} for number, token in added.items()]
    path.write_text(json.dumps(content))
    return added


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
QUESTION, THOUGHT, RESULT = "How warm is it in Paris?", "I have to look.", '{"t": 11}'
SECOND_THOUGHT, ANSWER, PLAIN, PLAIN_ANSWER = "11 it is.", "It is 11 degrees. 好的", "你好", "你好！我是小助手。"


def conversations() -> list[Conversation]:
    """Return what the model of :func:`taught_tools` learns: with tools and reasoning, and without either."""
    call = ToolCall("get_weather", {"city": "Paris", "days": 2})
    turns = (
        Turn("user", QUESTION),
        Turn("assistant", "", THOUGHT, (call,)),
        Turn("tool", RESULT, name="get_weather"),
        Turn("assistant", ANSWER, SECOND_THOUGHT),
    )
    plain = (Turn("user", PLAIN), Turn("assistant", PLAIN_ANSWER))
    return [Conversation("", None, turns, tools=(WEATHER,)), Conversation("", None, plain)]


@pytest.fixture(scope="session")
def taught_tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with Qwen3's template that knows two conversations by heart."""
    import torch
    from transformers import AutoModelForCausalLM

    from qwen_job.infer.prompting import Prompter

    folder = tmp_path_factory.mktemp("taught-tools")
    samples = [sample for one in conversations() for sample in maker("qwen3").samples(one, Counter())]
    start = templated_model(
        folder, "qwen3", [sample.text for sample in samples] * 2, hidden_size=64, intermediate_size=128
    )
    prompter = Prompter.load(start)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads for so small a model only wait for each other
    model = AutoModelForCausalLM.from_pretrained(start).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    rows = [prompter.encoded(sample.pieces) for sample in samples]
    for _ in range(120):
        for ids, learnt in rows:
            labels = [number if known else -100 for number, known in zip(ids, learnt, strict=True)]
            loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    assert loss.item() < 0.1
    shutil.copytree(start, folder / "model")
    model.save_pretrained(folder / "model")
    return folder / "model"
