"""Samples by structure: a template is rendered once for all conversations that differ only in what it copies.

The samples of placeholders are an :class:`Outline`; filled with the values of another conversation of the same
structure it is that one's samples. This is checked: the conversation that makes an outline, and one in thousands after
it, is rendered itself as well. At a difference, tools and arguments are taken apart more finely, or the structure is
rendered each time. A structure is outlined when it is seen a second time. Once some outlines were right and none was
wrong, a new one is checked by the conversation before instead, which was rendered anyway.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from json.encoder import encode_basestring
from typing import NamedTuple

from qwen_job.chat.conversation import Conversation
from qwen_job.chat.placeholders import LEVELS, SLOT, Odd, Outlined, Structure
from qwen_job.chat.samples import Sample, SampleMaker
from qwen_job.chat.template import Unrenderable

_LOG = logging.getLogger(__name__)
_CHECK_EVERY = 4096
_MOST_KNOWN = 4096
_MOST_KEPT = 1 << 22  # characters of conversations to check an outline by, if their structure comes again
_SOUND = 32  # outlines that were right
_MARKS = re.compile("[\ue000\ue001]")


class Slot(NamedTuple):
    """The place of a value: its number, and whether it is ``escaped`` as inside a JSON string."""

    number: int
    escaped: bool


class Section(NamedTuple):
    """A piece of an outline; see :class:`~qwen_job.chat.samples.Piece`."""

    text: tuple[str | Slot, ...]
    learnt: bool
    control: bool


class Outline(NamedTuple):
    """The samples of one structure: their pieces and learnt turns; ``counts``: what was done to each conversation."""

    samples: tuple[tuple[tuple[Section, ...], tuple[int, ...]], ...]
    counts: Counter[str]


class _Known:
    """What is known of one structure; ``first``: the values and what was made of the first conversation, as a hash."""

    __slots__ = ("first", "outline", "uses")

    def __init__(self) -> None:
        self.outline: Outline | None = None
        self.first: tuple[list[str], int] | None = None
        self.uses = 0


class Outlines:
    """Finds or makes the outline of a settled conversation."""

    def __init__(self, maker: SampleMaker) -> None:
        self._maker = maker
        tags = {tag for text in maker.template.texts.values() for tag in re.findall(r"</?[a-z_]+>", text)}
        words = {*tags, *maker.controls.frame, *maker.controls.words}
        self._odd = re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))))
        self._structures = [Structure(self._odd, level) for level in range(LEVELS)]
        self._level = 0
        self._known: dict[tuple[object, ...], _Known] = {}
        self._new: tuple[_Known, list[str]] | None = None
        self._kept = 0
        self._sound = 0.0

    def find(self, conversation: Conversation, plain: bool = False) -> tuple[Outline, list[str]] | None:
        """Return an outline and the values to fill it with; None: the conversation must be rendered itself.

        ``plain``: the conversation is not settled, and the settings leave it as it is (``Settler.is_settled``).
        """
        self._new = None
        try:
            structure = self._structures[self._level].outlined(conversation)
        except Odd:
            return None
        known = self._known.get(structure.key)
        if known is None:
            if len(self._known) >= _MOST_KNOWN:
                self._forget()  # there are more structures than conversations that share one
            known = self._known[structure.key] = _Known()
            self._new = known, structure.values
            return None
        known.uses += 1
        if known.uses == 1:
            outline = self._made(conversation, plain)
            proven = self._fits_first(known, outline) and self._sound >= _SOUND
            known.outline = outline if proven else self._checked(outline, conversation, structure, plain)
        elif known.uses % _CHECK_EVERY == 0 and known.outline is not None:
            known.outline = self._checked(known.outline, conversation, structure, plain, said=True)
        return (known.outline, structure.values) if known.outline is not None else None

    def keep(self, samples: list[Sample], counts: Counter[str]) -> None:
        """Keep what was made of the conversation that :meth:`find` has just not found, to check an outline by."""
        if self._new is None:
            return
        known, values = self._new
        size = sum(map(len, values))
        if self._kept + size <= _MOST_KEPT:
            known.first = values, _digest(_plain(samples), counts)
            self._kept += size

    def _fits_first(self, known: _Known, outline: Outline | None) -> bool:
        """Tell whether an outline gives what was made of the first conversation of its structure."""
        if known.first is None:
            return False
        values, digest = known.first
        known.first = None
        self._kept -= sum(map(len, values))
        return outline is not None and _digest(filled(outline, values), outline.counts) == digest

    def _forget(self) -> None:
        self._known.clear()
        self._kept = 0

    def _rendered(self, conversation: Conversation, plain: bool, counts: Counter[str]) -> list[Sample]:
        settled = self._maker.settler.settled(conversation, counts) if plain else conversation
        return self._maker.render(settled, counts)

    def _made(self, conversation: Conversation, plain: bool) -> Outline | None:
        placeholders, kinds = self._structures[self._level].placeholders(conversation)
        counts: Counter[str] = Counter()
        try:
            samples = self._rendered(placeholders, plain, counts)
            return Outline(tuple(_sections(sample, kinds) for sample in samples), counts)
        except (Unrenderable, Odd):
            return None

    def _checked(
        self, outline: Outline | None, conversation: Conversation, structure: Outlined, plain: bool, said: bool = False
    ) -> Outline | None:
        counts: Counter[str] = Counter()
        try:
            samples = self._rendered(conversation, plain, counts)
        except Unrenderable:
            return None  # the caller renders it and reports why
        if outline is not None and counts == outline.counts and filled(outline, structure.values) == _plain(samples):
            self._sound += 1
            return outline
        calls = bool(conversation.tools) or any(turn.calls for turn in conversation.turns)
        if calls and self._level < LEVELS - 1:
            self._level += 1
            self._sound = 0.0
            self._forget()
            return None
        self._sound = -math.inf
        if said:
            _LOG.warning(
                "%s: some conversations are rendered one by one: their text has an effect", self._maker.template
            )
        return None


def filled(outline: Outline, values: list[str]) -> list[list[tuple[str, bool, bool]]]:
    """Return the pieces of each sample, (text, learnt, control), with ``values`` in their places."""
    return [
        [("".join(fill(part, values) for part in text), learnt, control) for text, learnt, control in sections]
        for sections, _ in outline.samples
    ]


def fill(part: str | Slot, values: list[str]) -> str:
    """Return the text of a part of an outline."""
    if isinstance(part, str):
        return part
    value = values[part.number]
    return encode_basestring(value)[1:-1] if part.escaped else value


def _digest(samples: list[list[tuple[str, bool, bool]]], counts: Counter[str]) -> int:
    return hash((tuple(map(tuple, samples)), frozenset(counts.items())))


def _plain(samples: list[Sample]) -> list[list[tuple[str, bool, bool]]]:
    return [[(piece.text, piece.learnt, piece.control) for piece in sample.pieces] for sample in samples]


def _sections(sample: Sample, kinds: list[str]) -> tuple[tuple[Section, ...], tuple[int, ...]]:
    pieces = sample.pieces
    return tuple(Section(tuple(_parts(one.text, kinds)), one.learnt, one.control) for one in pieces), sample.turns


def _parts(text: str, kinds: list[str]) -> list[str | Slot]:
    parts: list[str | Slot] = []
    at = 0
    for found in SLOT.finditer(text):
        parts += [text[at : found.start()], *_slot(found, kinds)]
        at = found.end()
    parts.append(text[at:])
    if any(isinstance(part, str) and _MARKS.search(part) for part in parts):
        raise Odd  # the template changed a placeholder
    return [part for part in parts if part != ""]


def _slot(found: re.Match[str], kinds: list[str]) -> list[str | Slot]:
    form = str(found.lastgroup)
    number = int(found[form])
    kind = kinds[number] if number < len(kinds) else ""
    if form == "number" and kind != form:
        return [found[0]]
    slot = Slot(number, False)
    if kind == form or (kind, form) in (("json", "raw"), ("text", "raw")):
        return [slot]
    if (kind, form) == ("text", "json"):
        return ['"', Slot(number, True), '"']
    raise Odd
