"""How long the samples are, drawn as SVG. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

_WIDTH, _ROW, _LABEL, _TOP = 720, 24, 90, 44
_BLUE, _ORANGE = "#0072B2", "#E69F00"


def svg(counts: Mapping[str, int], *, title: str, max_length: int) -> str:
    """Return a bar for each range of ``counts`` (``<=512`` -> samples), from the first to the last that holds any.

    Ranges in which every sample is longer than ``max_length`` tokens are orange.
    """
    names = list(counts)
    filled = [at for at, name in enumerate(names) if counts[name]] or [0]
    shown = range(filled[0], filled[-1] + 1)
    total, most = sum(counts.values()) or 1, max(*counts.values(), 1)
    height = _TOP + _ROW * len(shown) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        'role="img" font-family="sans-serif" font-size="13" fill="currentColor">',
        f"<title>{escape(title)}</title>",
        f'<text x="10" y="20" font-weight="bold">{escape(title)}</text>',
    ]
    for row, at in enumerate(shown):
        y, count = _TOP + _ROW * row, counts[names[at]]
        below = int(names[at - 1][2:]) if at else 0
        colour = _ORANGE if below >= max_length else _BLUE
        wide = count / most * (_WIDTH - _LABEL - 150)
        parts += [
            f'<text x="{_LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(names[at])}</text>',
            f'<rect x="{_LABEL}" y="{y}" width="{wide:.1f}" height="{_ROW - 6}" fill="{colour}"/>',
            f'<text x="{_LABEL + wide + 6:.1f}" y="{y + 14}">{count} ({count / total:.1%})</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
