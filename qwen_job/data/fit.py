"""Samples that are longer than ``max_length``: drop, truncate keeping the answer, or split. Everything is
counted.
"""

from __future__ import annotations

from collections import Counter

from qwen_job.data.chatml import ChatTokenizer, Segment, signed_ids
from qwen_job.data.spec import DataSpec


def fit(parts: list[Segment], tokenizer: ChatTokenizer, spec: DataSpec, counts: Counter[str]) -> list[list[int]]:
    """Return the signed ids (see :func:`~qwen_job.data.chatml.signed_ids`) of the documents of one sample.

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
    if len(kept) > spec.max_length:
        # The frame alone is too long (a tokenizer that spells role names out): nothing of the answer would be
        # left.
        counts["dropped"] += 1
        return []
    counts["truncated"] += 1
    counts["tokens_cut"] += len(whole) - len(kept)
    return [kept]


def _exchanges(parts: list[Segment]) -> tuple[list[Segment], list[list[Segment]]]:
    """Return the system segment (if any) and the question-answer pairs."""
    system = parts[:1] if parts[0].role == "system" else []
    turns = parts[len(system) :]
    return system, [turns[start : start + 2] for start in range(0, len(turns), 2)]


def _joined(system: list[Segment], exchanges: list[list[Segment]]) -> list[Segment]:
    return [*system, *(part for exchange in exchanges for part in exchange)]


def _length(parts: list[Segment], tokenizer: ChatTokenizer) -> int:
    frames = tokenizer.masked_frames
    return sum(len(frames[part.role]) + len(part.text) + len(tokenizer.tail) * part.closed for part in parts)


def _truncate(parts: list[Segment], tokenizer: ChatTokenizer, max_length: int, counts: Counter[str]) -> list[Segment]:
    """Cut, in this order and only as far as needed: a question without answer at the end, the oldest
    exchanges, the middle of the last question, the middle of the system prompt, the end of the answer.

    Question and system prompt keep at least an eighth of ``max_length`` each: an answer to nothing teaches
    nothing.
    """
    system, exchanges = _exchanges(parts)
    turns = sum(map(len, exchanges))
    if len(exchanges[-1]) == 1:
        exchanges.pop()
    while len(exchanges) > 1 and _length(_joined(system, exchanges), tokenizer) > max_length:
        exchanges.pop(0)
    counts["turns_cut"] += turns - sum(map(len, exchanges))
    rest = _joined(system, exchanges)
    for role in ("user", "system"):
        excess = _length(rest, tokenizer) - max_length
        rest = [_cut_middle(part, excess, max_length // 8) if part.role == role else part for part in rest]
    excess = _length(rest, tokenizer) - max_length
    if excess > 0:
        counts["answers_cut"] += 1
        answer = rest[-1]
        # Without its end the segment is shorter already: those tokens go to the text.
        kept = max(1, len(answer.text) - excess + len(tokenizer.tail))
        rest[-1] = Segment(answer.role, answer.text[:kept], closed=False)
    return rest


def _cut_middle(part: Segment, excess: int, least: int) -> Segment:
    kept = max(min(len(part.text), least), len(part.text) - excess)
    if excess <= 0 or kept >= len(part.text):
        return part
    head = (kept + 1) // 2
    return Segment(part.role, part.text[:head] + part.text[len(part.text) - (kept - head) :])


def _split(parts: list[Segment], tokenizer: ChatTokenizer, spec: DataSpec, counts: Counter[str]) -> list[list[int]]:
    """Cut between exchanges, each piece starting with the system prompt; an exchange that is too long by
    itself is cut into stretches of ``max_length`` tokens. Pieces that train nothing are left out and
    counted."""
    system, exchanges = _exchanges(parts)
    pieces: list[list[Segment]] = []
    for exchange in exchanges:
        if pieces and _length(pieces[-1] + exchange, tokenizer) <= spec.max_length:
            pieces[-1] += exchange
        else:
            pieces.append(system + exchange)
    documents = []
    for piece in pieces:
        signed = signed_ids(piece, tokenizer, spec.mask)
        stretches = [signed[at : at + spec.max_length] for at in range(0, len(signed), spec.max_length)]
        documents += [stretch for stretch in stretches if max(stretch) >= 0]
        counts["pieces_without_answer"] += sum(max(stretch) < 0 for stretch in stretches)
    counts["split_pieces"] += len(documents)
    return documents
