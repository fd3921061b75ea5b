"""Conversation -> samples: the text that is trained, and which of it is learnt.

For every learnt turn, the prompt is what a server builds from the turns before it (``add_generation_prompt``), and
what is learnt is what the model then has to emit: reasoning, text, calls, and ``<|im_end|>``. Turns share a sample
where each prompt continues the sample so far, character by character and, at safe borders, token by token. Where a
template writes earlier turns otherwise (it drops their reasoning), a new sample begins with the new prompt.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from qwen_job.chat.conversation import Conversation, Turn
from qwen_job.chat.messages import Controls, Messages, marked_messages, plain_messages
from qwen_job.chat.parts import LONG, Part, long_parts
from qwen_job.chat.settings import ChatSettings
from qwen_job.chat.settle import CLOSE, OPEN, SWITCH, Settler, field
from qwen_job.chat.template import ChatTemplate, Unrenderable
from qwen_job.chat.traits import opening_of, traits_of
from qwen_job.chatml import IM_END
from qwen_job.facts.thinking import resolved_empty_think

Kind = Literal["prompt", "reasoning", "call", "answer"]
# Only the two newlines behind it are the template's: spaces there are the answer's, such as the indentation of code.
_BLOCK = re.compile(r"<think>\s*</think>\n{0,2}")


class Piece(NamedTuple):
    """A part of a sample: one ``control`` token, or the text between two, whole or cut where learning begins."""

    text: str
    kind: Kind
    learnt: bool
    control: bool


class Sample(NamedTuple):
    """One sequence; ``turns`` are the indices of its learnt turns."""

    pieces: tuple[Piece, ...]
    turns: tuple[int, ...]

    @property
    def text(self) -> str:
        """The whole text, control tokens written out."""
        return "".join(piece.text for piece in self.pieces)


class SampleMaker:
    """Makes samples with one template and the settings of a job.

    Attributes:
        traits: what the template can do.
        empty_think: what to do with turns without reasoning: learn, mask or omit; ``why`` is the reason.
    """

    def __init__(self, template: ChatTemplate, settings: ChatSettings, controls: Controls, another: str = "") -> None:
        self.template, self.settings, self.controls = template, settings, controls
        self.traits = traits_of(template)
        self.settler = Settler(settings, self.traits, template.source, another)
        self.empty_think, self.why = resolved_empty_think(settings.empty_think, self.traits.thinking)
        self._pattern = controls.pattern

    def samples(self, conversation: Conversation, counts: Counter[str]) -> list[Sample]:
        """Return the samples of a conversation, none if no turn is learnt; add to ``counts`` what was done.

        Raises:
            Unrenderable: the template cannot render it; names the turn, and what to do.
        """
        return self.render(self.settler.settled(conversation, counts), counts)

    def render(self, conversation: Conversation, counts: Counter[str]) -> list[Sample]:
        """Return the samples of a settled conversation (see :class:`~qwen_job.chat.settle.Settler`).

        Raises:
            Unrenderable: the template cannot render it.
        """
        learnt = [number for number, turn in enumerate(conversation.turns) if turn.learn]
        if not learnt:
            counts["nothing_learnt"] += 1
            return []
        messages, parts = self._parts(conversation, learnt, counts)
        if self.traits.thinks:
            thinking = sum(conversation.turns[number].reasoning is not None for number in learnt)
            for name, turns in (("with", thinking), ("without", len(learnt) - thinking)):
                if turns:
                    counts[f"turns_{name}_reasoning"] += turns
            if thinking < len(learnt) and self._asks_in_vain(conversation):
                counts["thinking_without_reasoning"] += 1
        return [self._sample(group, messages.mark) for group in self._groups(parts, counts)]

    def _parts(
        self, conversation: Conversation, learnt: list[int], counts: Counter[str]
    ) -> tuple[Messages, list[Part]]:
        """Render prompts and turns; with marks, check that the template read the text as it reads the plain one."""
        messages = marked_messages(conversation, conversation.system, self.controls)
        parts = self._rendered(conversation, messages, learnt)
        if not messages.mark:
            return messages, parts
        plain = self._rendered(conversation, plain_messages(conversation, conversation.system), learnt)
        if not _are_equal(parts, plain, messages.mark):
            # Such as a user's <tool_response>, by which Qwen3's template knows the results of tools.
            messages = marked_messages(conversation, conversation.system, self.controls, words=False)
            parts = self._rendered(conversation, messages, learnt)
            if not _are_equal(parts, plain, messages.mark):
                raise Unrenderable("row", f"holds text that looks like a control token, which this template reads ("
                                   f"{self.template.source}); remove it")  # fmt: skip
            counts["words_read_by_the_template"] += 1
        if messages.mark and any(messages.mark in part.whole for part in parts):
            counts["looks_like_control_tokens"] += 1
        return messages, parts

    def _rendered(self, conversation: Conversation, messages: Messages, learnt: list[int]) -> list[Part]:
        first = len(messages.messages) - len(conversation.turns)
        joins = self.settings.several_thoughts == "join"

        def part_of(number: int) -> Part:
            return self._part(number, first + number, conversation.turns[number], messages)

        if len(learnt) >= LONG and not self.traits.thinks and not joins:
            roles = [turn.role for turn in conversation.turns]
            if (parts := long_parts(roles, learnt, part_of)) is not None:
                for part in parts:
                    _refuse_loss(part.turn, conversation.turns[part.turn], part.learnt, messages.mark)
                return parts
        parts = list(map(part_of, learnt))
        if not joins:
            return parts
        for at, part in enumerate(parts[1:], 1):
            _, options = self._switched(part.turn, conversation.turns[part.turn], messages.options)
            until = messages.messages[: first + parts[at - 1].turn + 1]
            ends = self.template.render(until, messages.tools, **options).count(IM_END)
            parts[at] = part._replace(ends=ends)
        return parts

    def _part(self, number: int, at: int, turn: Turn, messages: Messages) -> Part:
        """Return what a server asks before turn ``number``, the message ``at``, and what the model should answer."""
        thinks, options = self._switched(number, turn, messages.options)
        before, tools = messages.messages[:at], messages.tools
        asked = self.template.render(before, tools, True, **options)
        whole = self.template.render([*before, messages.messages[at]], tools, **options)
        opening = opening_of(asked)
        header = asked.removesuffix(opening) if opening else asked
        body, end, after = whole[len(header) :].rpartition(IM_END)
        if not whole.startswith(header) or not end:
            raise Unrenderable(field(number, turn), f"the chat template writes it otherwise than it asks for it ("
                               f"{self.template.source}); choose another data.template")  # fmt: skip
        if thinks:
            shown, learnt = "", _after_opening(body, opening, messages.messages[at]["reasoning_content"])
        else:
            block = _BLOCK.match(body)
            asked, shown, learnt = self._without_thoughts(header, opening, body[block.end() if block else 0 :])
        _refuse_loss(number, turn, learnt, messages.mark)
        return Part(number, asked, len(asked), shown, learnt + end, after)

    def _switched(self, number: int, turn: Turn, options: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
        """Return whether a turn has reasoning, and the options of its prompt: thinking on or off as it has."""
        thinks = turn.reasoning is not None
        if options.get(SWITCH) is False and thinks and self.traits.has_switch:
            raise Unrenderable(f"{field(number, turn)}.reasoning", "is given although enable_thinking is false; "
                               "remove one of them, or write data.thinking: strip")  # fmt: skip
        if not self.traits.has_switch or SWITCH in options:
            return thinks, dict(options)
        return thinks, {**options, SWITCH: thinks or self.empty_think != "mask"}

    def _asks_in_vain(self, conversation: Conversation) -> bool:
        """Tell whether a row asks for thinking, and its answers without reasoning are trained as with thinking off."""
        return self.traits.has_switch and self.empty_think == "mask" and conversation.options.get(SWITCH) is True

    def _without_thoughts(self, header: str, opening: str, answer: str) -> tuple[str, str, str]:
        """Return prompt, what is shown, and what is learnt, of a turn without reasoning."""
        if not self.traits.thinks:
            return header + opening, "", answer
        if self.empty_think == "omit":
            return header, "", answer
        rest = "" if "</think>" in opening else (OPEN + CLOSE).removeprefix(opening)
        shown, learnt = (rest, "") if self.empty_think == "mask" else ("", rest)
        return header + opening, shown, learnt + answer

    def _groups(self, parts: list[Part], counts: Counter[str]) -> Iterator[list[Part]]:
        """Group the turns that share a sample."""
        groups: list[list[Part]] = []
        broken = False
        for part in parts:
            before = groups[-1][-1] if groups else None
            continues = before is not None and part.continues(before) and _is_safe(before)
            if before is not None and not continues and self.settings.several_thoughts == "join":
                broken = continues = True
                text = before.whole + _behind(part.prompt, part.ends)
                part = part._replace(text=text, size=len(text))
            if continues:
                groups[-1].append(part)
            else:
                groups.append([part])
        if len(groups) > 1:
            counts["split_at_turns"] += 1
            counts["samples_of_split"] += len(groups)
        if broken:
            counts["joined_thoughts"] += 1
        return iter(groups)

    def _sample(self, group: list[Part], mark: str) -> Sample:
        pieces: list[Piece] = []
        done = 0
        for part in group:
            pieces += self._pieces(part.text[done : part.size] + part.shown, learnt=False)
            pieces += self._learnt_pieces(part)
            done = part.end
        pieces += self._pieces(group[-1].after, learnt=False)
        if mark:
            pieces = [piece if piece.control else piece._replace(text=piece.text.replace(mark, "")) for piece in pieces]
        return Sample(tuple(pieces), tuple(part.turn for part in group))

    def _pieces(self, text: str, learnt: bool, kind: Kind = "prompt") -> Iterator[Piece]:
        at = 0
        for found in self._pattern.finditer(text):
            if found.start() > at:
                yield Piece(text[at : found.start()], kind, learnt, False)
            yield Piece(found[0], kind, learnt, True)
            at = found.end()
        if at < len(text):
            yield Piece(text[at:], kind, learnt, False)

    def _learnt_pieces(self, part: Part) -> Iterator[Piece]:
        kind: Kind = "reasoning" if part.text.endswith(OPEN, 0, part.size) and not part.shown else "answer"
        for piece in self._pieces(part.learnt, learnt=True):
            kind = _BEGINS.get(piece.text, kind) if piece.control else kind
            yield piece._replace(kind=kind)
            if piece.control and piece.text in _ENDS:
                kind = "answer"


_BEGINS: dict[str, Kind] = {"<think>": "reasoning", "<tool_call>": "call", IM_END: "answer"}
_ENDS = ("</think>", "</tool_call>")


def _after_opening(body: str, opening: str, reasoning: str) -> str:
    """Return what the model emits after ``opening``, with its reasoning, also where the template leaves that out."""
    if not body.startswith("<think>"):
        body = OPEN + reasoning.strip("\n") + CLOSE + body
    return body.removeprefix(opening)


def _is_safe(part: Part) -> bool:
    """Tell whether the tokens up to a learnt text and those of it are also the tokens of both together.

    Qwen's pattern splits after a line end unless white space follows, and control tokens always split.
    """
    last = part.shown[-1:] or part.text[part.size - 1 : part.size]
    return last == "\n" and not part.learnt[:1].isspace()


def _behind(prompt: str, ends: int) -> str:
    """Return what a prompt has behind its first ``ends`` ends of turns."""
    return IM_END.join(prompt.split(IM_END)[ends:])


def _refuse_loss(number: int, turn: Turn, learnt: str, mark: str) -> None:
    """Refuse a turn of which the template leaves out words, such as what is before a ``</think>`` in its text."""
    learnt = learnt.replace(mark, "") if mark else learnt
    for text in (turn.text, turn.reasoning or "", *(call.name for call in turn.calls)):
        if text.strip() not in learnt:
            raise Unrenderable(field(number, turn), "the chat template leaves out a part of it; remove <think> and "
                               "</think> from its text, or choose another data.template")  # fmt: skip


def _are_equal(parts: list[Part], plain: list[Part], mark: str) -> bool:
    """Tell whether parts are the ``plain`` ones but for marks."""
    return all(part.without(mark) == other.without("") for part, other in zip(parts, plain, strict=True))
