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
        flags: list[str] = []
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
    return Serving(traits_of(chosen.template) if chosen.template else None)


def _python(value: Any, indent: str = "") -> str:
    """Return a dict of dicts as Python source, one key a line."""
    if not isinstance(value, dict) or all(not isinstance(part, dict) for part in value.values()):
        return json.dumps(value)
    inner = indent + "    "
    lines = [f"{inner}{json.dumps(key)}: {_python(part, inner)},\n" for key, part in value.items()]
    return "{\n" + "".join(lines) + indent + "}"
