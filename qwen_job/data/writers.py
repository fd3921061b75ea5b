"""Conversation -> documents: in ChatML as Qwen-1 has it, or as the model's own chat template writes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from qwen_job.chat.chosen import Chosen
from qwen_job.chat.conversation import Conversation
from qwen_job.chat.messages import Controls
from qwen_job.chat.outline import Outline, Outlines, Slot, fill
from qwen_job.chat.samples import Sample, SampleMaker
from qwen_job.chat.settings import ChatSettings
from qwen_job.chat.settle import Settler
from qwen_job.chat.template import ChatTemplate
from qwen_job.chat.traits import Traits
from qwen_job.data.documents import Constants, Document, join_documents
from qwen_job.data.encode import ChatTokenizer, Segment, signed_ids
from qwen_job.data.encoder import load_encoder
from qwen_job.data.makers import refuse_mask
from qwen_job.data.vocabulary import added_tokens, is_control
from qwen_job.errors import ModelError
from qwen_job.run.sections import DataSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

# ChatML writes plain turns only.
PLAIN_TRAITS = Traits(False, False, "", has_switch=False, adds_system=False, variables=frozenset())


class Writer(ABC):
    """Writes conversations as documents, whose constants are numbered in ``constants``; ``settler`` is the job's."""

    def __init__(self, tokenizer: ChatTokenizer, settler: Settler) -> None:
        self.tokenizer, self.settler = tokenizer, settler
        self.constants = Constants()

    @abstractmethod
    def documents(self, conversation: Conversation, counts: Counter[str]) -> list[Document]:
        """Return the documents of a conversation; add to ``counts`` what was done to it.

        Raises:
            Unrenderable: it cannot be written.
        """

    def encode(
        self, documents: Sequence[Document], shared: bool = False
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return what :func:`~qwen_job.data.documents.join_documents` does; ``shared``: many texts come repeatedly."""
        texts = list(chain.from_iterable([document.texts for document in documents]))
        if not shared:
            return join_documents(documents, self.tokenizer.encode_flat(texts), None, self.constants)
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        which = np.fromiter(map(numbers.__getitem__, texts), np.int64, len(texts))
        return join_documents(documents, self.tokenizer.encode_flat(list(numbers)), which, self.constants)

    @property
    @abstractmethod
    def adds_system(self) -> bool:
        """Whether a conversation that says nothing about it gets a system prompt."""


class ChatmlWriter(Writer):
    """Writes ChatML, role and text encoded separately; ``mask`` as in :func:`~qwen_job.data.encode.signed_ids`."""

    def __init__(self, tokenizer: ChatTokenizer, settler: Settler, system_prompt: str, mask: str) -> None:
        super().__init__(tokenizer, settler)
        self.system_prompt, self.mask = system_prompt, mask
        self._known: dict[tuple[str, ...], _Framed] = {}

    def documents(self, conversation: Conversation, counts: Counter[str]) -> list[Document]:
        """Return the one document of a conversation."""
        labels, texts = self.labelled(conversation, counts)
        frame = self._known.get(labels) or self._framed(labels)
        if frame is _NOTHING_LEARNT:
            counts["nothing_learnt"] += 1
            return []
        return [_new(Document, (frame[0], texts, frame[1], ()))]

    @property
    def adds_system(self) -> bool:
        """Whether there is a default system prompt."""
        return bool(self.system_prompt)

    def labelled(self, conversation: Conversation, counts: Counter[str]) -> tuple[tuple[str, ...], list[str]]:
        """Return labels and texts of the system prompt, if any, and every turn: its role, or that it is unlearnt."""
        turns = conversation.turns
        if self.settler.is_settled(conversation):
            labels = [turn[0] for turn in turns]
        else:
            turns = self.settler.settled(conversation, counts).turns
            labels = [_UNLEARNT if turn.role == "assistant" and not turn.learn else turn.role for turn in turns]
        texts = [turn[1] for turn in turns]
        # An empty system prompt is none at all here.
        if system := self.system_prompt if conversation.system is None else conversation.system:
            return ("system", *labels), [system, *texts]
        return tuple(labels), texts

    def segments(self, conversation: Conversation, counts: Counter[str]) -> list[Segment]:
        """Return the texts of a conversation, encoded."""
        labels, texts = self.labelled(conversation, counts)
        return list(map(_segment, labels, self.tokenizer.encode_batch(texts)))

    def _framed(self, labels: tuple[str, ...]) -> _Framed:
        """Return what documents with these labels share: few conversations differ in their roles."""
        if len(self._known) >= _MOST_COMPILED:
            self._known.clear()
        learnt = [label == "assistant" for label in labels]
        pairs = zip(("", *labels), (*labels, ""), strict=True)
        frame = ([self._between(*pair) for pair in pairs], learnt) if any(learnt) else _NOTHING_LEARNT
        self._known[labels] = frame
        return frame

    def _between(self, before: str, after: str) -> int:
        """Return the number of the constant between two labels; an empty one is the start or the end."""
        end = self._frame(before)[1] if before else ()
        start = self._frame(after)[0] if after else ()
        return self.constants.number(end + start)

    def _frame(self, label: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        part = _segment(label, [])
        signed = tuple(signed_ids([part], self.tokenizer, self.mask))
        length = len(self.tokenizer.masked_frames[part.role])
        return signed[:length], signed[length:]


_UNLEARNT = "unlearnt"
_MOST_COMPILED = 4096
# Constants, and which texts between them are learnt.
_Framed = tuple[list[int], list[bool]]
_NOTHING_LEARNT: _Framed = ([], [])
_new = tuple.__new__
# Texts of templates whose tokens are kept: short ones, such as what is around a call, and a few as long as a preamble.
_LONGEST_KNOWN, _LONGEST_KEPT, _MOST_KEPT = 256, 1 << 16, 64


def _segment(label: str, text: list[int]) -> Segment:
    return Segment("assistant", text, learnt=False) if label == _UNLEARNT else Segment(label, text)


class _Compiled(NamedTuple):
    """A sample of an outline: constants by number, and the texts around its values."""

    constants: list[int]
    fills: list[int | tuple[str | Slot, ...]]
    learnt: list[bool]
    turns: tuple[int, ...]

    def document(self, values: list[str]) -> Document:
        texts = [
            values[part] if isinstance(part, int) else "".join([fill(one, values) for one in part])
            for part in self.fills
        ]
        return Document(self.constants, texts, self.learnt, self.turns)


class TemplateWriter(Writer):
    """Writes what a chat template does; equal structures are rendered once."""

    def __init__(self, tokenizer: ChatTokenizer, maker: SampleMaker) -> None:
        super().__init__(tokenizer, maker.settler)
        self.maker = maker
        self._outlines = Outlines(maker)
        self._compiled: dict[int, tuple[Outline, list[_Compiled]]] = {}
        self._encode = lru_cache(maxsize=_MOST_COMPILED)(tokenizer.encode)
        self._encode_long = lru_cache(maxsize=_MOST_KEPT)(tokenizer.encode)
        self._ids = {token: tokenizer.id_of(token) for token in (*maker.controls.frame, *maker.controls.words)}

    def documents(self, conversation: Conversation, counts: Counter[str]) -> list[Document]:
        """Return one document for each sample of a conversation."""
        plain = self.settler.is_settled(conversation)
        settled = conversation if plain else self.settler.settled(conversation, counts)
        found = self._outlines.find(settled, plain)
        if found is None:
            settled = self.settler.settled(conversation, Counter()) if plain else settled
            done: Counter[str] = Counter()
            samples = self.maker.render(settled, done)
            counts.update(done)
            self._outlines.keep(samples, done)
            return [self.document(sample) for sample in samples]
        outline, values = found
        if outline.counts:
            counts.update(outline.counts)
        return [sample.document(values) for sample in self._samples(outline)]

    @property
    def adds_system(self) -> bool:
        """Whether the job or the template has a default system prompt."""
        return bool(self.maker.settings.system_prompt) or self.maker.traits.adds_system

    def document(self, sample: Sample) -> Document:
        """Return a sample with its control tokens as constants."""
        builder = _Builder(self)
        for piece in sample.pieces:
            builder.add((piece.text,), piece.learnt, piece.control)
        return builder.finish(sample.turns).document([])

    def _samples(self, outline: Outline) -> list[_Compiled]:
        known = self._compiled.get(id(outline))
        if known is None or known[0] is not outline:
            if len(self._compiled) > _MOST_COMPILED:
                self._compiled.clear()
            known = self._compiled[id(outline)] = outline, list(map(self._compile, outline.samples))
        return known[1]

    def _compile(
        self, sample: tuple[tuple[tuple[tuple[str | Slot, ...], bool, bool], ...], tuple[int, ...]]
    ) -> _Compiled:
        sections, turns = sample
        builder = _Builder(self)
        for text, learnt, control in sections:
            builder.add(text, learnt, control, literal=not any(isinstance(part, Slot) for part in text))
        return builder.finish(turns)

    def ids(self, text: str, control: bool) -> list[int]:
        """Return the tokens of a control token or of a text."""
        if control:
            return [self._ids[text]]
        if len(text) <= _LONGEST_KNOWN:
            return self._encode(text)
        return self._encode_long(text) if len(text) <= _LONGEST_KEPT else self.tokenizer.encode(text)


class _Builder:
    """Collects constants and texts in turn."""

    def __init__(self, writer: TemplateWriter) -> None:
        self._writer = writer
        self._signed: list[int] = []
        self._constants: list[int] = []
        self._fills: list[int | tuple[str | Slot, ...]] = []
        self._learnt: list[bool] = []

    def add(self, text: tuple[str | Slot, ...], learnt: bool, control: bool, literal: bool = False) -> None:
        if control or literal:
            self._constant("".join(map(str, text)), learnt, control)
            return
        first = text[0]
        if self._writer.tokenizer.splits_at_lines and isinstance(first, str) and first.endswith("\n") and len(text) > 1:
            # What follows a line end and does not begin with white space, as no value does, is apart from it.
            self._constant(first, learnt, control=False)
            text = text[1:]
        self._constants.append(self._writer.constants.number(tuple(self._signed)))
        self._signed = []
        only = text[0] if len(text) == 1 else None
        self._fills.append(only.number if isinstance(only, Slot) and not only.escaped else text)
        self._learnt.append(learnt)

    def finish(self, turns: tuple[int, ...]) -> _Compiled:
        self._constants.append(self._writer.constants.number(tuple(self._signed)))
        return _Compiled(self._constants, self._fills, self._learnt, turns)

    def _constant(self, text: str, learnt: bool, control: bool) -> None:
        ids = self._writer.ids(text, control)
        self._signed += ids if learnt else [~number for number in ids]


def settings_of(spec: DataSpec) -> ChatSettings:
    """Return the settings of a job that decide what is rendered and learnt."""
    return ChatSettings(spec.system_prompt, spec.learn, spec.thinking, spec.empty_think, spec.several_thoughts)


def load_writer(spec: DataSpec, chosen: Chosen, folder: Path) -> ChatmlWriter | TemplateWriter:
    """Return the writer for a job's data with the tokenizer of the model in ``folder``.

    Raises:
        DataError: the settings do not fit the template.
        ModelError: the tokenizer cannot be read, or is not one of a chat model.
    """
    settings = settings_of(spec)
    if chosen.template is None:
        system = chosen.system_prompt if spec.system_prompt is None else spec.system_prompt
        return ChatmlWriter(load_encoder(folder), Settler(settings, PLAIN_TRAITS, "ChatML"), system, spec.mask)
    refuse_mask(chosen, spec.mask)
    words = template_words(chosen.template, folder)
    tokenizer = load_encoder(folder, words)
    controls = Controls(tokenizer.control_tokens, tuple(sorted(words)))
    return TemplateWriter(tokenizer, SampleMaker(chosen.template, settings, controls))


def template_words(template: ChatTemplate, folder: Path) -> frozenset[str]:
    """Return the tokens that a model's tokenizer has for words of its template, such as ``<think>``.

    Raises:
        ModelError: tokenizer.json cannot be read.
    """
    path = folder / "tokenizer.json"
    try:
        added = added_tokens(path.read_bytes().decode())
    except FileNotFoundError:
        raise ModelError(f"{path}: does not exist; 'qwen-job model fetch' or 'convert' writes it") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); fetch the model again") from error
    text = "\n".join(template.texts.values())
    return frozenset(token for token in added if token.strip() and not is_control(token) and token in text)
