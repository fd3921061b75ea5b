"""A chat with a trained model: its turns, the next prompt, and the answer as it is generated.

The history is kept as a client of a server keeps it: turns with reasoning and calls apart. The model's template decides
what a prompt shows of earlier reasoning.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from qwen_job.errors import UsageError
from qwen_job.infer.reply import Piece, Reply, ReplyReader
from qwen_job.infer.source import Sampling, SamplingOptions, find_model
from qwen_job.text import visible

if TYPE_CHECKING:
    from qwen_job.infer.answer import Answerer
    from qwen_job.infer.prompting import PromptIds


class Frame(NamedTuple):
    """What surrounds the turns of a chat.

    Attributes:
        system: the system prompt; None: the template's default.
        tools: what the model may call, in OpenAI's form.
        thinking: whether to think before answering; None: the template's default.
    """

    system: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    thinking: bool | None = None


class Chat:
    """A conversation: the turns so far, and the next answer.

    Attributes:
        turns: those that are complete.
        reply: the last answer.
    """

    def __init__(self, answerer: Answerer, frame: Frame, sampling: Sampling) -> None:
        self.frame, self.turns, self.reply = frame, list[Turn](), Reply(None, "")
        self._results: list[Turn] = []
        self._answerer, self._sampling = answerer, sampling
        answerer.prompter.check(frame.tools, frame.thinking)

    @property
    def pending(self) -> ToolCall | None:
        """The call of the last answer whose result is to be given next; None: the next turn is the user's."""
        calls = self.turns[-1].calls if self.turns else ()
        return calls[len(self._results)] if len(self._results) < len(calls) else None

    def clear(self) -> None:
        """Forget all turns."""
        self.turns.clear()
        self._results.clear()

    def take(self, text: str) -> Iterator[Piece] | None:
        """Take the user's next turn, or the result of the pending call; return the answer in pieces.

        None: results of further calls are needed first. Turns join the history when the answer is complete or
        interrupted.

        Raises:
            UsageError: the text is not UTF-8, or too long.
        """
        _check_text("message", text)
        call = self.pending
        if call is None:
            return self._answer([Turn("user", text)])
        results = [*self._results, Turn("tool", text, name=call.name, call_id=call.id)]
        if len(results) < len(self.turns[-1].calls):
            self._results = results
            return None
        return self._answer(results)

    def _answer(self, new: list[Turn]) -> Iterator[Piece]:
        return self._stream(self._prompt(new), new)

    def _stream(self, prompt: PromptIds, new: list[Turn]) -> Iterator[Piece]:
        reader = ReplyReader(opened=prompt.opened, thinking=self._answerer.prompter.thinks, tools=self.frame.tools)
        try:
            for piece in self._answerer.stream(prompt.ids, self._sampling):
                yield from reader.add(piece)
            yield from reader.end()
        finally:
            self.reply = reader.reply()
            self.turns += new
            self.turns.append(Turn("assistant", self.reply.text, self.reply.reasoning, self.reply.calls))
            self._results = []

    def _prompt(self, new: list[Turn]) -> PromptIds:
        """Return the prompt; the oldest questions are dropped when the conversation exceeds the model's context."""
        _check_text("system prompt", self.frame.system or "")
        room = self._answerer.limit - min(self._sampling.max_new_tokens, self._answerer.limit // 2)
        while True:
            options = {} if self.frame.thinking is None else {"enable_thinking": self.frame.thinking}
            turns = (*self.turns, *new)
            chat = Conversation("", self.frame.system, turns, tools=self.frame.tools, options=options)
            prompt = self._answerer.prompter.prompt(chat)
            if len(prompt.ids) <= room:
                return prompt
            later = next((at for at, turn in enumerate(turns) if at and turn.role == "user"), None)
            if later is None:
                raise UsageError(
                    f"the message has {len(prompt.ids)} tokens, and the model has room for {room}; shorten it"
                )
            del self.turns[:later]


def _check_text(name: str, text: str) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UsageError(f"the {name} is not UTF-8 text: {visible(text, 80)}")


def open_chat(path: Path, frame: Frame, sampling: Sampling | SamplingOptions) -> Chat:
    """Load the model of a run folder or a model folder.

    Raises:
        ModelError: there is no model.
        UsageError: its chat template has no place for ``frame``'s tools or thinking.
    """
    target = find_model(path)
    quiet()
    from qwen_job.infer.answer import load_answerer

    answerer = load_answerer(target.model)
    if isinstance(sampling, SamplingOptions):
        sampling = sampling.for_model(target.model, thinks=answerer.prompter.thinks and frame.thinking is not False)
    return Chat(answerer, frame, sampling)


def quiet() -> None:
    """Keep libraries from writing to standard output."""
    # transformers imports DeepSpeed if it is installed, and DeepSpeed prints a line to stdout.
    os.environ.setdefault("DS_ACCELERATOR", _accelerator())


def _accelerator() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
