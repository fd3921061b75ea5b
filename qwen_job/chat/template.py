"""A model's chat template: find it in the model's folder, compile it once, render messages as transformers does."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from traceback import walk_tb
from typing import Any, NamedTuple

import jinja2

from qwen_job.chat.sandbox import ERRORS, compiled
from qwen_job.errors import ModelError

Message = Mapping[str, Any]
# The files in which transformers looks, the first found wins; then the key of tokenizer_config.json.
TEMPLATE_FILE, MORE_TEMPLATES, CONFIG = "chat_template.jinja", "additional_chat_templates", "tokenizer_config.json"
_DEFAULT, _WITH_TOOLS = "default", "tool_use"
# The names under which a message's reasoning is known, the usual one first.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What render() passes; a row's options must not replace it.
RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class Unrenderable(ValueError):
    """A template does not render these messages; ``message`` is what it said, and what to do."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field, self.message = field, message


class Texts(NamedTuple):
    """The templates of a folder by name (``default``, ``tool_use``), and the special tokens that they may name."""

    texts: Mapping[str, str]
    tokens: Mapping[str, str]


class ChatTemplate:
    """A chat template, compiled when it is first used.

    Attributes:
        source: where it is from, for messages.
        texts: its Jinja text by name; most models have only ``default``.
        sha256: of its texts.
        date: what ``strftime_now`` returns as today.
    """

    def __init__(
        self,
        texts: Mapping[str, str],
        source: str,
        *,
        tokens: Mapping[str, str] = {},
        date: datetime.date | None = None,
    ) -> None:
        self.texts, self.source, self._tokens = dict(texts), source, dict(tokens)
        self.date = date or datetime.date.today()
        content = texts[_DEFAULT] if set(texts) == {_DEFAULT} else json.dumps(self.texts, sort_keys=True)
        self.sha256 = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def __repr__(self) -> str:
        return f"ChatTemplate({self.source}, sha256 {self.sha256[:12]})"

    @property
    def text(self) -> str:
        """The template for chats without tools."""
        return self.texts.get(_DEFAULT) or next(iter(self.texts.values()))

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **options: Any,
    ) -> str:
        """Return the text of a chat, equal to that of ``apply_chat_template(..., tokenize=False)``.

        Args:
            messages: each with role and content, in OpenAI's form; ``arguments`` of tool calls are parsed.
            tools: each ``{"type": "function", "function": {...}}``; none and an empty list are the same.
            add_generation_prompt: end with what asks the assistant for a turn.
            options: further variables of the template, such as ``enable_thinking``.

        Raises:
            Unrenderable: the template refuses; ``field`` names the turn where it does.
        """
        try:
            return self._render(messages, tools, add_generation_prompt, options)
        except jinja2.TemplateSyntaxError as error:
            raise Unrenderable("data.template", f"{self.source}:{error.lineno}: is no Jinja template: {error.message}; "
                               "correct it, or write another file or chatml") from error  # fmt: skip
        except ERRORS as error:
            field = self._culprit(messages, tools, options)
            raise Unrenderable(field, f"{_words(error)} ({self.source}){_advice(str(error))}") from error

    def fault(self, error: Unrenderable) -> str:
        """Name the place in the template where it failed, and why: for an error that is not the messages'."""
        cause = error.__cause__
        if isinstance(cause, jinja2.TemplateSyntaxError):
            return f"{self.source}:{cause.lineno}: is no Jinja template: {cause.message}"
        assert isinstance(cause, ERRORS)
        lines = [line for frame, line in walk_tb(cause.__traceback__) if frame.f_code.co_filename == "<template>"]
        return f"{self.source}:{lines[-1] if lines else 1}: {_words(cause)}"

    def _render(
        self,
        messages: Iterable[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        asks: bool,
        options: Mapping[str, Any],
    ) -> str:
        text = self.texts.get(_WITH_TOOLS, self.text) if tools is not None else self.text
        values = {**self._tokens, **options, "messages": [_as_seen(message) for message in messages]}
        values |= {
            "tools": list(tools) if tools is not None else None,
            "documents": None,
            "add_generation_prompt": asks,
        }
        return compiled(text, datetime.datetime.combine(self.date, datetime.time())).render(values)

    def _culprit(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, options: Mapping[str, Any]
    ) -> str:
        """Name the first message from which on the template refuses."""
        count = len(messages)
        while count > 1:
            try:
                self._render(messages[: count - 1], tools, False, options)
            except ERRORS:
                count -= 1
            else:
                break
        has_system = bool(messages) and messages[0].get("role") == "system"
        if count <= 1 + has_system:
            return "row"
        return f"turn {count - has_system} ({messages[count - 1].get('role')})"


def find_texts(folder: Path) -> Texts | None:
    """Return the chat templates of a model's folder where transformers finds them; None if it has none.

    Raises:
        ModelError: a file cannot be read or holds something else.
    """
    config = _config(folder / CONFIG)
    tokens = {name: _token(config[name]) for name in _NAMED_TOKENS if config.get(name)}
    texts: dict[str, str] = {}
    if (folder / TEMPLATE_FILE).is_file():
        texts[_DEFAULT] = _read(folder / TEMPLATE_FILE)
    for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja")):
        texts[path.stem] = _read(path)
    texts = texts or _in_config(config.get("chat_template"), folder / CONFIG)
    return Texts(texts, tokens) if texts else None


def read_template(path: Path, date: datetime.date | None = None) -> ChatTemplate:
    """Read a template from a file of the user's.

    Raises:
        ModelError: it cannot be read.
    """
    return ChatTemplate({_DEFAULT: _read(path)}, str(path), date=date)


def _as_seen(message: Message) -> dict[str, Any]:
    """Return a message as transformers shows it: no key without a value, reasoning under its several names."""
    seen = {key: value for key, value in message.items() if value is not None}
    reasoning = next((seen[name] for name in _REASONING if name in seen), None)
    return seen if reasoning is None else {"thinking": reasoning, **seen, "reasoning_content": reasoning}


def _read(path: Path) -> str:
    try:
        # Jinja itself reads any line end; the bytes must stay for the hash and the export.
        return path.read_bytes().decode()
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); write a Jinja template in UTF-8") from error


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is not JSON ({error}); fetch the model again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: is not an object; fetch the model again")
    return config


def _in_config(found: object, path: Path) -> dict[str, str]:
    if found is None or found == "":
        return {}
    if isinstance(found, str):
        return {_DEFAULT: found}
    named = found if isinstance(found, list) else []
    pairs = [(one.get("name"), one.get("template")) for one in named if isinstance(one, dict)]
    if not pairs or not all(isinstance(part, str) for pair in pairs for part in pair):
        raise ModelError(
            f"{path}: chat_template: is neither a text nor a list of named templates; fetch the model again"
        )
    return {str(name): str(text) for name, text in pairs}


def _token(value: object) -> str:
    return str(value.get("content", "")) if isinstance(value, dict) else str(value)


def _words(error: Exception) -> str:
    said = str(error) or type(error).__name__
    if isinstance(error, RecursionError):
        said = "calls itself for ever"
    if isinstance(error, MemoryError):
        said = "needs too much memory"
    return (
        f"the chat template refuses: {said}"
        if isinstance(error, jinja2.TemplateError)
        else f"the chat template fails: {said}"
    )


# Part of what Qwen's templates say: what to change.
_FIXES = {
    "system message must be": "; move the system turn to the front, or remove it",
    "no user query": "; give the conversation a user turn, or remove it",
    "message role": "; write system, user, assistant or tool",
    "reasoning effort": "; correct chat_template_kwargs.reasoning_effort",
}


_OTHERWISE = "; correct or remove this conversation, or choose another data.template"


def _advice(said: str) -> str:
    return next((fix for part, fix in _FIXES.items() if part in said.casefold()), _OTHERWISE)
