"""Fit samples that are longer than ``max_length``: drop, truncate but keep the answer, or split. All is counted."""

from __future__ import annotations

from collections import Counter

from qwen_job.data.encode import ChatTokenizer, Segment, signed_ids
from qwen_job.run.sections import DataSpec


def fit(parts: list[Segment], tokenizer: ChatTokenizer, spec: DataSpec, counts: Counter[str]) -> list[list[int]]:
    """Return the signed ids (see :func:`~qwen_job.data.encode.signed_ids`) of the documents of one sample.

    Each is at most ``spec.max_length`` long. What was cut, dropped or split is added to ``counts``.
    """
    whole = signed_ids(parts, tokenizer, spec.mask)
    if len(whole) <= spec.max_length:
        return [whole]
    counts["long_samples"] += 1
    if spec.long_samples == "drop":
        counts["dropped"] += 1
        return []
    if spec.long_samples == "split":
        counts["split"] += 1
        return _split(parts, tokenizer, spec, counts)
    kept = signed_ids(_truncate(parts, tokenizer, spec.max_length, counts), tokenizer, spec.mask)
    if len(kept) > spec.max_length or max(kept) < 0:
        # The frame alone is too long (a tokenizer that spells out role names), or what is learnt was cut.
        counts["dropped"] += 1
        return []
    counts["truncated"] += 1
    counts["tokens_cut"] += len(whole) - len(kept)
    return [kept]


def _exchanges(parts: list[Segment]) -> tuple[list[Segment], list[list[Segment]]]:
    """Return the system segment (if any) and the exchanges: questions with their answers."""
    system = parts[:1] if parts[0].role == "system" else []
    exchanges: list[list[Segment]] = []
    before = "assistant"
    for part in parts[len(system) :]:
        if not exchanges or (part.role == "user" and before == "assistant"):
            exchanges.append([])
        exchanges[-1].append(part)
        before = part.role
    return system, exchanges


def _length(parts: list[Segment], tokenizer: ChatTokenizer) -> int:
    frames = tokenizer.masked_frames
    return sum(len(frames[part.role]) + len(part.text) + len(tokenizer.tail) * part.closed for part in parts)


def _truncate(parts: list[Segment], tokenizer: ChatTokenizer, max_length: int, counts: Counter[str]) -> list[Segment]:
    """Cut a sample to ``max_length``, in a fixed order and only as far as needed.

    First a last question without an answer, then the oldest exchanges, the last of several answers to one question,
    the middle of the last question, the middle of the system prompt, and the end of the answer. Question and system
    prompt each keep at least an eighth of ``max_length``, because an answer without a question teaches nothing.
    """
    system, exchanges = _exchanges(parts)
    if exchanges[-1][-1].role == "user":
        exchanges.pop()
    lengths = [_length(exchange, tokenizer) for exchange in exchanges]
    excess, first = _length(system, tokenizer) + sum(lengths) - max_length, 0
    while excess > 0 and first < len(exchanges) - 1:
        excess -= lengths[first]
        first += 1
    rest = [*system, *(part for exchange in exchanges[first:] for part in exchange)]
    while excess > 0 and [part.role for part in rest[-2:]] == ["assistant", "assistant"]:
        excess -= _length([rest.pop()], tokenizer)
    counts["turns_cut"] += len(parts) - len(rest)
    for role in ("user", "system"):
        for at, part in enumerate(rest):
            if excess > 0 and part.role == role:
                rest[at] = _cut_middle(part, excess, max_length // 8)
                excess -= len(part.text) - len(rest[at].text)
    if excess > 0:
        counts["answers_cut"] += 1
        answer = rest[-1]
        # Without its end token the segment is already shorter: the text may use that space.
        kept = max(1, len(answer.text) - excess + len(tokenizer.tail))
        rest[-1] = answer._replace(text=answer.text[:kept], closed=False)
    return rest


def _cut_middle(part: Segment, excess: int, least: int) -> Segment:
    kept = max(min(len(part.text), least), len(part.text) - excess)
    if excess <= 0 or kept >= len(part.text):
        return part
    head = (kept + 1) // 2
    return part._replace(text=part.text[:head] + part.text[len(part.text) - (kept - head) :])


def _split(parts: list[Segment], tokenizer: ChatTokenizer, spec: DataSpec, counts: Counter[str]) -> list[list[int]]:
    """Split a sample between exchanges; each piece starts with the system prompt.

    An exchange that is itself too long is cut every ``max_length`` tokens. What follows its first piece is the middle
    of a text: it continues without the system prompt and the question, and is counted. Pieces without trained tokens
    are left out and counted.
    """
    system, exchanges = _exchanges(parts)
    opening = _length(system, tokenizer)
    pieces: list[list[Segment]] = []
    filled = spec.max_length
    for exchange in exchanges:
        length = _length(exchange, tokenizer)
        if filled + length <= spec.max_length:
            pieces[-1] += exchange
            filled += length
        else:
            pieces.append(system + exchange)
            filled = opening + length
    documents = []
    for piece in pieces:
        signed = signed_ids(piece, tokenizer, spec.mask)
        stretches = [signed[at : at + spec.max_length] for at in range(0, len(signed), spec.max_length)]
        documents += [stretch for stretch in stretches if max(stretch) >= 0]
        counts["continued_pieces"] += sum(max(stretch) >= 0 for stretch in stretches[1:])
        counts["pieces_without_answer"] += sum(max(stretch) < 0 for stretch in stretches)
    counts["split_pieces"] += len(documents)
    return documents
