"""``qwen-job chat``: a chat in the terminal or through a pipe.

Text and calls of tools go to standard output; reasoning and remarks to standard error, dimmed on a terminal.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from qwen_job.chat.conversation import ToolCall
from qwen_job.errors import UsageError
from qwen_job.infer.chat import Chat, Frame, open_chat
from qwen_job.infer.reply import Piece
from qwen_job.infer.source import Sampling, SamplingOptions
from qwen_job.text import json_text, visible

HELP = "/clear: start a new conversation; /system TEXT: change the system prompt; /exit or Ctrl-D: quit"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class Screen:
    """Shows answers."""

    def __init__(self, out: TextIO, aside: TextIO) -> None:
        self._out, self._aside = out, aside
        self._dim = aside.isatty() and not os.environ.get("NO_COLOR")
        self._thinking, self._line_ended = False, True

    def show(self, chat: Chat, pieces: Iterator[Piece]) -> None:
        """Show an answer as it comes, then its calls, and what is wrong with it. Ctrl-C stops it."""
        self._thinking, self._line_ended = False, False
        stopped = False
        try:
            for piece in pieces:
                self._write(piece)
        except KeyboardInterrupt:
            pieces.close()  # type: ignore[attr-defined]
            stopped = True
        self._close(chat, stopped)

    def remark(self, text: str) -> None:
        """Show a line beside the answers."""
        self._aside.write(visible(text) + "\n")
        self._aside.flush()

    def _write(self, piece: Piece) -> None:
        shown = visible(piece.text, None, keep="\n\t")
        if piece.reasoning:
            self._aside.write(f"{_DIM}{shown}{_PLAIN}" if self._dim else shown)
            self._aside.flush()
        else:
            self._end_reasoning()
            self._out.write(shown)
            self._out.flush()
            self._line_ended = shown.endswith("\n")
        self._thinking = piece.reasoning

    def _end_reasoning(self) -> None:
        if self._thinking:
            self._aside.write("\n")
            self._aside.flush()

    def _close(self, chat: Chat, stopped: bool) -> None:
        self._end_reasoning()
        calls = chat.reply.calls
        self._out.write(" [stopped]" if stopped else "")
        if stopped or not calls or (chat.reply.text and not self._line_ended):
            self._out.write("\n")
        for call in calls:
            self._out.write(json_text({"name": call.name, "arguments": call.arguments}) + "\n")
        self._out.flush()
        for problem in chat.reply.problems:
            self.remark(f"{problem}; it is kept as text, as a server does")
        if chat.reply.cut and not stopped:
            self.remark("the answer ended before its reasoning did; give it more room with --max-new-tokens")


def asked(call: ToolCall) -> str:
    """Return what asks for the result of a call: ``result of get_weather(city='Paris'):``."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
    return visible(f"result of {call.name}({arguments}):", 300)


def answer_all(chat: Chat, texts: Iterable[str], screen: Screen) -> None:
    """Answer the texts in turn, as one conversation; after calls, the next texts are their results."""
    for text in texts:
        if chat.pending:
            screen.remark(f"{asked(chat.pending)} {text}")
        pieces = chat.take(text)
        if pieces is not None:
            screen.show(chat, pieces)
    if chat.pending:
        screen.remark(f"{asked(chat.pending)} none is given; the input ends here")


def talk(chat: Chat, screen: Screen) -> None:
    """Run the interactive conversation until /exit or the end of input; Ctrl-C stops an answer."""
    import readline  # noqa: F401 (adds line editing to input())

    screen.remark(HELP)
    while True:
        call = chat.pending
        try:
            text = input(f"{asked(call)} " if call else "\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if text in ("/exit", "/quit"):
            return
        if text == "/clear":
            chat.clear()
        elif text == "/system" or text.startswith("/system "):
            chat.frame = chat.frame._replace(system=text.removeprefix("/system").strip())
        elif text.startswith("/") and not call:
            screen.remark(HELP)
        elif text:
            _answer(chat, text, screen)


def _answer(chat: Chat, text: str, screen: Screen) -> None:
    try:
        pieces = chat.take(text)
    except UsageError as error:
        screen.remark(str(error))
        return
    if pieces is not None:
        screen.show(chat, pieces)


def chat_command(path: Path, texts: Sequence[str], frame: Frame, sampling: Sampling | SamplingOptions) -> None:
    """Answer ``texts``; without any, chat on a terminal, or answer each line of standard input."""
    chat = open_chat(path, frame, sampling)
    screen = Screen(sys.stdout, sys.stderr)
    if texts:
        answer_all(chat, texts, screen)
    elif sys.stdin.isatty():
        talk(chat, screen)
    else:
        if isinstance(sys.stdin, io.TextIOWrapper):  # text that is not UTF-8 is refused turn by turn
            sys.stdin.reconfigure(errors="surrogateescape")
        answer_all(chat, (line.rstrip("\n") for line in sys.stdin if line.strip()), screen)
