"""The chat template of an exported model: the one that training used, where its model keeps it.

A template of the model's own is copied byte for byte. Only where ``data.system_prompt`` was set, a line goes before it
that adds this system turn to a chat without one: training did so with every row, and a server should, too.

- ``write_template``: from the folder that training started from into the exported one
- ``with_system_prompt``: a template and the line before it
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qwen_job.chat.chosen import AUTO, choose
from qwen_job.chat.template import (
    CONFIG,
    MORE_TEMPLATES,
    TEMPLATE_FILE,
    ChatTemplate,
    Unrenderable,
    find_texts,
    read_template,
)
from qwen_job.chat.traits import traits_of
from qwen_job.chatml import chat_template
from qwen_job.errors import ModelError
from qwen_job.facts.model_files import member, read_json
from qwen_job.storage import write_bytes, write_json

_PROBE = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]
Change = Callable[[str], str]


def with_system_prompt(template: str, system_prompt: str) -> str:
    """Return a template that opens chats without a system turn with ``system_prompt``, and else is ``template``."""
    quoted = json.dumps(system_prompt, ensure_ascii=False)
    # Not "-%}", which would also trim the template's own first characters; trim_blocks removes the one line end.
    return (
        "{%- if not messages or messages[0]['role'] != 'system' %}"
        "{%- set messages = [{'role': 'system', 'content': " + quoted + "}] + messages %}{%- endif %}\n" + template
    )


def write_template(source: Path, folder: Path, choice: str, system_prompt: str | None) -> list[str]:
    """Write the template of a training into ``folder``, which has the tokenizer_config.json of ``source`` already.

    ``choice``: ``data.template``; ``system_prompt``: ``data.system_prompt``, None: the template's own. Returns notes.

    Raises:
        ModelError: a file cannot be read, or the written template does not open a chat as training did.
    """
    trained, default = choose(choice, source)
    if trained is None:
        _set_entry(folder / CONFIG, chat_template(default if system_prompt is None else system_prompt))
        return []
    # An empty one is an empty turn where the template would else add its default.
    added = system_prompt if system_prompt or traits_of(trained).adds_system else None
    change: Change = _same if added is None else (lambda text: with_system_prompt(text, added))
    if choice == AUTO:
        _copy(source, folder, change)
    else:
        write_bytes(folder / TEMPLATE_FILE, change(trained.text).encode())
        _set_entry(folder / CONFIG, change(trained.text))  # for releases before chat_template.jinja
    if added is None:
        return []
    _prove(trained, folder, added)
    return ["chat template: a line before it adds data.system_prompt to chats without a system turn, as in training"]


def _same(text: str) -> str:
    return text


def _copy(source: Path, folder: Path, change: Change) -> None:
    """Copy every template file of ``source``, and rewrite the key of tokenizer_config.json if ``change`` does."""
    if (source / TEMPLATE_FILE).is_file():
        write_bytes(folder / TEMPLATE_FILE, change(_text(member(source, TEMPLATE_FILE))).encode())
    more = sorted((source / MORE_TEMPLATES).glob("*.jinja"))
    for path in more:
        (folder / MORE_TEMPLATES).mkdir(exist_ok=True)
        write_bytes(folder / MORE_TEMPLATES / path.name, change(_text(member(path.parent, path.name))).encode())
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    entry = config.get("chat_template")
    if isinstance(entry, str) and entry:
        _set_entry(folder / CONFIG, change(entry))
    elif isinstance(entry, list):
        _set_entry(folder / CONFIG, [_renamed(one, change) for one in entry])


def _renamed(one: Any, change: Change) -> Any:
    named = isinstance(one, Mapping) and isinstance(one.get("template"), str)
    return {**one, "template": change(one["template"])} if named else one


def _set_entry(path: Path, entry: object) -> None:
    config = read_json(path) if path.is_file() else {}
    if config.get("chat_template") != entry:
        write_json(path, {**config, "chat_template": entry})


def _prove(trained: ChatTemplate, folder: Path, system_prompt: str) -> None:
    """Compare the text of a chat without a system turn with the text that training gave it."""
    found = find_texts(folder)
    assert found is not None
    system = {"role": "system", "content": system_prompt}
    try:
        wanted = trained.render([system, *_PROBE], add_generation_prompt=True)
        written = ChatTemplate(found.texts, str(folder), tokens=found.tokens).render(_PROBE, add_generation_prompt=True)
    except Unrenderable as error:
        _refuse_broken(trained)
        raise ModelError(f"data.system_prompt: {error}") from error
    if wanted != written:
        raise ModelError(
            "data.system_prompt: the model's chat template ignores a system turn that is added before it, so a server "
            "would not use the prompt of training; remove data.system_prompt, or write data.template: chatml"
        )


def _refuse_broken(trained: ChatTemplate) -> None:
    """Blame the template, not the system prompt, where it fails without one, too."""
    try:
        trained.render(_PROBE, add_generation_prompt=True)
    except Unrenderable as error:
        raise ModelError(
            f"data.template: {trained.fault(error)}; correct it, or write another file or chatml"
        ) from error


def _text(path: Path) -> str:
    return read_template(path).text
