"""``qwen-job chat``: chat with a trained model in the terminal or through a pipe."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from qwen_job.data.encode import encode_prompt
from qwen_job.errors import UsageError
from qwen_job.infer.source import Sampling, SamplingOptions, find_model
from qwen_job.text import visible

if TYPE_CHECKING:
    from qwen_job.infer.answer import Answerer

HELP = "/clear: start a new conversation; /system TEXT: change the system prompt; /exit or Ctrl-D: quit"


class Chat:
    """A conversation: the turns so far, and the next answer."""

    def __init__(self, answerer: Answerer, system: str, sampling: Sampling) -> None:
        self.system = system
        self.turns: list[tuple[str, str]] = []
        self._answerer, self._sampling = answerer, sampling

    def ask(self, text: str) -> Iterator[str]:
        """Yield the answer in pieces; add the turn to the history when it is complete or interrupted."""
        prompt = self._prompt(text)
        pieces: list[str] = []
        try:
            for piece in self._answerer.stream(prompt, self._sampling):
                pieces.append(piece)
                yield piece
        finally:
            self.turns += [("user", text), ("assistant", "".join(pieces))]

    def _prompt(self, text: str) -> list[int]:
        """Return the prompt ids; the oldest turns are dropped when the conversation exceeds the model's context."""

        for name, words in (("message", text), ("system prompt", self.system)):
            if any("\ud800" <= letter <= "\udfff" for letter in words):
                raise UsageError(f"the {name} is not UTF-8 text: {visible(words, 80)}")
        room = self._answerer.limit - min(self._sampling.max_new_tokens, self._answerer.limit // 2)
        while True:
            turns = [*self.turns, ("user", text)]
            ids = encode_prompt(turns, self._answerer.tokenizer, system_prompt=self.system)
            if len(ids) <= room:
                return ids
            if not self.turns:
                raise UsageError(f"the message has {len(ids)} tokens, and the model has room for {room}; shorten it")
            del self.turns[:2]


def open_chat(path: Path, system: str | None, sampling: Sampling | SamplingOptions) -> Chat:
    """Load the model of a run folder or a model folder; ``system`` None: the prompt that it was trained with."""
    target = find_model(path)
    if isinstance(sampling, SamplingOptions):
        sampling = sampling.for_model(target.model)
    quiet()
    from qwen_job.infer.answer import load_answerer

    return Chat(load_answerer(target.model), target.system_prompt if system is None else system, sampling)


def quiet() -> None:
    """Keep libraries from writing to standard output."""
    # transformers imports DeepSpeed if it is installed, and DeepSpeed prints a line to stdout.
    os.environ.setdefault("DS_ACCELERATOR", _accelerator())


def _accelerator() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _shown(piece: str) -> str:
    """Escape control sequences in a model's output; keep line ends and tabs."""
    return visible(piece, None, keep="\n\t")


def answer_all(chat: Chat, prompts: Iterable[str], out: TextIO) -> None:
    """Answer the prompts in turn, as one conversation, each answer on its own lines."""
    for prompt in prompts:
        for piece in chat.ask(prompt):
            out.write(_shown(piece))
            out.flush()
        out.write("\n")
        out.flush()


def talk(chat: Chat, out: TextIO) -> None:
    """Run the interactive conversation until /exit or the end of input; Ctrl-C stops an answer."""
    import readline  # noqa: F401 (adds line editing to input())

    print(HELP, file=sys.stderr)
    while True:
        try:
            text = input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if text in ("/exit", "/quit"):
            return
        if text == "/clear":
            chat.turns.clear()
        elif text.startswith("/system"):
            chat.system = text.removeprefix("/system").strip()
        elif text.startswith("/"):
            print(HELP, file=sys.stderr)
        elif text:
            _interruptible(chat, text, out)


def _interruptible(chat: Chat, text: str, out: TextIO) -> None:
    answer = chat.ask(text)
    try:
        for piece in answer:
            out.write(_shown(piece))
            out.flush()
    except KeyboardInterrupt:
        out.write(" [stopped]")
        answer.close()  # type: ignore[attr-defined]
    except UsageError as error:
        print(visible(error), file=sys.stderr)
    out.write("\n")


def chat_command(path: Path, prompts: Sequence[str], system: str | None, sampling: Sampling | SamplingOptions) -> None:
    """Answer ``prompts``; without any, chat on a terminal, or answer each line of standard input."""
    chat = open_chat(path, system, sampling)
    if prompts:
        answer_all(chat, prompts, sys.stdout)
    elif sys.stdin.isatty():
        talk(chat, sys.stdout)
    else:
        if isinstance(sys.stdin, io.TextIOWrapper):  # text that is not UTF-8 is refused turn by turn
            sys.stdin.reconfigure(errors="surrogateescape")
        answer_all(chat, (line.rstrip("\n") for line in sys.stdin if line.strip()), sys.stdout)
