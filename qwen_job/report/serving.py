"""How to serve a trained model: vLLM's options and requests, from what its chat template can do.

- ``Serving``: the options, and examples
- ``serving_of``: those of a model folder
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from qwen_job.chat.chosen import AUTO, choose
from qwen_job.chat.traits import Traits, traits_of
from qwen_job.facts.families import FAMILIES
from qwen_job.facts.model_files import architectures, exists, read_json

_WHOLE = {family.whole for family in FAMILIES.values() if family.whole}
_TEXT_ALONE = {family.architecture for family in FAMILIES.values() if family.whole}

_WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_CLIENT = """
from openai import OpenAI

client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")
TOOLS
answer = client.chat.completions.create(
    model="path/to/model",
    messages=[{"role": "user", "content": "QUESTION"}],
MORE)
print(answer.choices[0].message)
"""


class Serving(NamedTuple):
    """What a server has to know. ``traits`` None: plain ChatML, which needs no options."""

    traits: Traits | None
    architecture: str = ""

    @property
    def needs(self) -> str:
        """A sentence on the releases of vLLM that load the model; empty where any does.

        The text model alone: vLLM's changes 50210 and 50355, merged at the end of July 2026, which 0.27 is the first
        release after. The whole folder: as the hub's. Read, not tested.
        """
        if self.architecture in _TEXT_ALONE:
            return (
                "A folder of the text model alone needs vLLM 0.27 or newer. For an older one, train with "
                "`train.export: original`."
            )
        if self.architecture in _WHOLE:
            return (
                "This is the folder of the base model with trained text weights; it needs vLLM 0.17 or newer. Its "
                "vision tower and its multi-token prediction were not trained: leave speculative decoding with it off. "
                "`--language-model-only` does not load the vision tower."
            )
        return ""

    @property
    def tools(self) -> bool:
        """Whether the model's prompts have a place for tools."""
        return self.traits is not None and self.traits.knows_tools

    @property
    def thinks(self) -> bool:
        """Whether the model's answers have a place for reasoning."""
        return self.traits is not None and self.traits.thinks

    @property
    def switch(self) -> bool:
        """Whether a request can turn reasoning on and off."""
        return self.traits is not None and self.traits.has_switch

    @property
    def flags(self) -> list[str]:
        """Return the options of ``vllm serve``, tested with vLLM 0.32.

        Its parser qwen3 takes all text up to ``</think>`` as reasoning unless thinking is off, so it is left out for
        templates without reasoning, and told of templates that do not think unless asked.
        """
        flags: list[str] = ["--language-model-only"] if self.architecture in _WHOLE else []
        if self.thinks:
            flags += ["--reasoning-parser", "qwen3"]
        if self.traits is not None and self.traits.off_unasked:
            flags += ["--default-chat-template-kwargs", '{"enable_thinking": false}']
        if self.tools:
            parser = "qwen3_coder" if self.traits and self.traits.calls_in_xml else "hermes"
            flags += ["--enable-auto-tool-choice", "--tool-call-parser", parser]
        return flags

    def command(self, model: str) -> str:
        """Return the command that serves the folder ``model``."""
        return shlex.join(["vllm", "serve", model, *self.flags])

    def client(self) -> str:
        """Return Python that asks the server, with a tool and without reasoning where the model has them."""
        more = "    tools=[weather],\n" if self.tools else ""
        switch = json.dumps({"chat_template_kwargs": {"enable_thinking": False}}).replace("false", "False")
        more += f"    extra_body={switch},\n" if self.switch else ""
        question = "How warm is it in Paris?" if self.tools else "你好"
        tools = f"weather = {_python(_WEATHER)}\n" if self.tools else ""
        return _CLIENT.strip().replace("TOOLS\n", tools).replace("QUESTION", question).replace("MORE", more)


def serving_of(folder: Path) -> Serving:
    """Return how to serve a model folder.

    Raises:
        ModelError: its template cannot be read.
    """
    chosen = choose(AUTO, folder)
    path = folder / "config.json"
    named = architectures(read_json(path)) if exists(path) else []
    return Serving(traits_of(chosen.template) if chosen.template else None, str(named[0]) if named else "")


def _python(value: Any, indent: str = "") -> str:
    """Return a dict of dicts as Python source, one key a line."""
    if not isinstance(value, dict) or all(not isinstance(part, dict) for part in value.values()):
        return json.dumps(value)
    inner = indent + "    "
    lines = [f"{inner}{json.dumps(key)}: {_python(part, inner)},\n" for key, part in value.items()]
    return "{\n" + "".join(lines) + indent + "}"
