"""The model card and the run's last lines serve a model as its chat template needs it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_job.chat.traits import traits_of
from qwen_job.report.model_card import use_lines, write_model_card
from qwen_job.report.serving import Serving, serving_of
from tests.chat.cases import ALL, template, text_of
from tests.support.pages import blocks
from tests.support.templated import PLAIN_ANSWER

TOOLS = ["--enable-auto-tool-choice", "--tool-call-parser"]
REASONING = ["--reasoning-parser", "qwen3"]
FLAGS = {
    "qwen2_5": [*TOOLS, "hermes"],
    "qwen3": [*REASONING, *TOOLS, "hermes"],
    "qwen3_2507_thinking": [*REASONING, *TOOLS, "hermes"],
    "qwen3_5_nothink": [
        *REASONING, "--default-chat-template-kwargs", '{"enable_thinking": false}', *TOOLS, "qwen3_coder",
    ],
    "qwen3_5_think": [*REASONING, *TOOLS, "qwen3_coder"],
    "qwen3_6": [*REASONING, *TOOLS, "qwen3_coder"],
    "qwen3_8": [*REASONING, *TOOLS, "qwen3_coder"],
    "qwen3_instruct_2507": [*TOOLS, "hermes"],
    "qwq": [*REASONING, *TOOLS, "hermes"],
}  # fmt: skip


def finished_run(folder: Path, name: str | None, **data: Any) -> Path:
    """Write the run folder of a model with the named template (None: with none)."""
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
    if name:
        (model / "chat_template.jinja").write_text(text_of(name))
    section = {"train": [{"path": "/data/a.json"}], "max_length": 512, **data}
    settings = {"name": "demo", "model": {"name": "Qwen/Qwen3-8B", "source": "huggingface"}, "data": section}
    (folder / "train.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.mark.parametrize("name", ALL)
def test_the_options_are_those_of_the_template(name: str) -> None:
    assert Serving(traits_of(template(name))).flags == FLAGS[name]


def test_a_model_without_a_template_needs_no_options(tmp_path: Path) -> None:
    assert serving_of(tmp_path).flags == []


@pytest.mark.parametrize("language", ["", ".zh-CN"])
def test_the_guide_shows_every_option(language: str, checkout: Path) -> None:
    text = (checkout / "docs" / f"serving{language}.md").read_text("utf-8")
    assert all(f"{flags[-2]} {flags[-1]}" in text and " ".join(REASONING) in text for flags in FLAGS.values())
    assert "--default-chat-template-kwargs '{\"enable_thinking\": false}'" in text


@pytest.mark.parametrize("name", [None, *ALL])
def test_the_card_has_the_command_and_a_request(name: str | None, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", name)
    card = write_model_card(run)
    (command,) = (block for block in blocks(card, "sh") if block.startswith("vllm serve"))
    _, client = blocks(card, "python")
    flags = FLAGS[name] if name else []
    assert shlex.split(command) == ["vllm", "serve", "path/to/model", *flags]
    compile(client, "client.py", "exec")
    assert ("tools=[weather]" in client) == ("--tool-call-parser" in flags)
    switch = name in ("qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8")
    assert ('"enable_thinking": False' in client) == switch
    assert f"vLLM: {serving_of(run / 'model').command(str(run / 'model'))}" in use_lines(run, {})


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        (None, {}, "The chat template is ChatML with the system prompt of the training."),
        ("qwen3", {}, "The chat template is the base model's own, byte for byte."),
        ("qwen3", {"template": "auto"}, "The chat template is the base model's own, byte for byte."),
        ("qwen3", {"system_prompt": "x"}, "The chat template is the base model's own, with a line before it: "),
        ("qwen3", {"template": "/a/b.jinja"}, "The chat template is the file `b.jinja`, byte for byte."),
    ],
)
def test_the_card_tells_where_the_template_is_from(
    name: str | None, data: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    assert sentence in write_model_card(finished_run(tmp_path / "run", name, **data)).read_text()


@pytest.mark.parametrize(
    ("name", "words"), [("qwen3", "Reasoning is on unless"), ("qwen3_5_nothink", "Reasoning is off unless")]
)
def test_the_card_tells_the_default_of_reasoning(name: str, words: str, tmp_path: Path) -> None:
    assert words in write_model_card(finished_run(tmp_path / "run", name)).read_text()


@pytest.mark.train
def test_the_cards_python_answers(taught_tools: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", "qwen3")
    example, _ = blocks(write_model_card(run), "python")
    assert "enable_thinking=False" in example
    code = example.replace("path/to/model", str(taught_tools)).replace("max_new_tokens=512", "max_new_tokens=60")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{PLAIN_ANSWER}\n"


@pytest.mark.parametrize(
    ("architecture", "flags", "needs"),
    [
        ("Qwen3_5ForCausalLM", [], "needs vLLM 0.27 or newer"),
        ("Qwen3_5ForConditionalGeneration", ["--language-model-only"], "vLLM 0.17 or newer"),
        ("Qwen3ForCausalLM", [], ""),
    ],
)
def test_what_a_server_needs_for_qwen35(tmp_path: Path, architecture: str, flags: list[str], needs: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    serving = serving_of(tmp_path)
    assert serving.flags == flags and needs in serving.needs and bool(serving.needs) == bool(needs)
