"""How long the samples are and what they hold, as bars of text and drawn as SVG. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from qwen_job.data.sizes import KINDS

_WIDTH, _ROW, _LABEL, _TOP = 720, 24, 90, 66
_COLOURS = {"prompt": "#999999", "reasoning": "#CC79A7", "call": "#E69F00", "answer": "#009E73"}
_TOO_LONG = "#D55E00"
# In thousandths.
_SHARES = {"50%": 500, "90%": 900, "99%": 990, "99.9%": 999}

Kinds = Mapping[str, Mapping[str, int]]


def shown_ranges(counts: Mapping[str, int]) -> list[str]:
    """Return the ranges of ``counts`` (``<=512`` -> samples) from the first to the last that holds any."""
    names = list(counts)
    filled = [at for at, name in enumerate(names) if counts[name]] or [0]
    return names[filled[0] : filled[-1] + 1]


def quantiles(lengths: Mapping[int, int]) -> dict[str, int]:
    """Return the length that each share of the samples does not exceed; ``lengths`` counts samples by length."""
    total, seen, found = sum(lengths.values()), 0, dict[str, int]()
    shares = list(_SHARES)
    for length in sorted(lengths):
        seen += lengths[length]
        while shares and 1000 * seen >= _SHARES[shares[0]] * total:
            found[shares.pop(0)] = length
    return found


def over(lengths: Mapping[int, int], max_length: int) -> tuple[int, int]:
    """Return how many samples are longer than ``max_length`` tokens, and how many tokens they have beyond it."""
    longer = {length: count for length, count in lengths.items() if length > max_length}
    return sum(longer.values()), sum((length - max_length) * count for length, count in longer.items())


def segments(length: int, kinds: Sequence[int]) -> list[int]:
    """Divide a bar of ``length`` characters in proportion to ``kinds``; they add up to ``length``."""
    total, ends, before = sum(kinds) or 1, list[int](), 0
    for size in kinds:
        before += size
        ends.append(round(length * before / total))
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def svg(counts: Mapping[str, int], kinds: Kinds, *, title: str, max_length: int) -> str:
    """Return a bar for each range of ``counts``, divided by the tokens of each of KINDS in its samples.

    The names of ranges in which every sample is longer than ``max_length`` tokens are orange.
    """
    names, shown = list(counts), shown_ranges(counts)
    total, most = sum(counts.values()) or 1, max(*counts.values(), 1)
    height = _TOP + _ROW * len(shown) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        'role="img" font-family="sans-serif" font-size="13" fill="currentColor">',
        f"<title>{escape(title)}</title>",
        f'<text x="10" y="20" font-weight="bold">{escape(title)}</text>',
        *_legend([kind for kind in KINDS if any(held[kind] for held in kinds.values())]),
    ]
    for row, name in enumerate(shown):
        at, y, count = names.index(name), _TOP + _ROW * row, counts[name]
        too_long = at > 0 and int(names[at - 1][2:]) >= max_length
        fill = f' fill="{_TOO_LONG}"' if too_long else ""
        wide = count / most * (_WIDTH - _LABEL - 150)
        parts += [
            f'<text x="{_LABEL - 8}" y="{y + 14}" text-anchor="end"{fill}>{escape(name)}</text>',
            *_bar(y, wide, kinds[name]),
            f'<text x="{_LABEL + wide + 6:.1f}" y="{y + 14}">{count} ({count / total:.1%})</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _bar(y: int, wide: float, held: Mapping[str, int]) -> list[str]:
    total, x, parts = sum(held.values()) or 1, float(_LABEL), list[str]()
    for kind in KINDS:
        part = wide * held[kind] / total
        if part:
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{part:.1f}" height="{_ROW - 6}" fill="{_COLOURS[kind]}"/>')
        x += part
    return parts


def _legend(kinds: Sequence[str]) -> list[str]:
    parts = []
    for number, kind in enumerate(kinds):
        x = 10 + 100 * number
        parts.append(f'<rect x="{x}" y="34" width="12" height="12" fill="{_COLOURS[kind]}"/>')
        parts.append(f'<text x="{x + 18}" y="45">{kind}</text>')
    return parts
