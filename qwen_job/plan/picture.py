"""Memory against the card, drawn: a stacked bar for a terminal and the same as SVG for the report."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from qwen_job.plan.memory import GIB, MemoryEstimate

# A fill of its own for each item, so that the bar reads without colour; colours of equal lightness from Okabe and Ito.
FILLS = "█▓▒░▚▞╳▤▥▦◧◩"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8C564B")
ANSI = (34, 33, 32, 35, 36, 31, 93, 90)
OVER = "#B00020"


def bar(estimate: MemoryEstimate, *, width: int = 60, colour: bool = False, title: str = "") -> str:
    """Return the bar with a legend, as lines of text; ``width`` is that of the bar in characters.

    The bar ends at the card's memory (``│``); what is over it stands behind. A job without a GPU, or one whose memory
    is unknown, is drawn against its own total.
    """
    items, total, capacity = _parts(estimate)
    scale = max(total, capacity or 0) or 1
    widths = _widths([size for _, size in items], width * total / scale)
    pieces = [_paint(FILLS[i % len(FILLS)] * n, i, colour) for i, n in enumerate(widths)]
    edge = round(width * (capacity or scale) / scale)
    plain = sum(widths)
    drawn = "".join(pieces) + " " * max(0, edge - plain)
    head = f"{title}: " if title else ""
    lines = [f"{head}{_sentence(total, capacity, bool(estimate.gpu))}", f"▕{drawn}▏"]
    if capacity is not None and total > capacity:
        lines.append(" " * (edge + 1) + "╵ the card ends here")
    longest = max((len(name) for name, _ in items), default=0)
    for i, (name, size) in enumerate(items):
        fill = _paint(FILLS[i % len(FILLS)], i, colour)
        lines.append(f"  {fill} {name:{longest}} {size / GIB:9.2f} GiB {size / total:6.1%}")
    return "\n".join(lines)


def svg(estimate: MemoryEstimate, *, width: int = 720, title: str = "Memory") -> str:
    """Return the bar as a standalone SVG picture with a title, a legend and the card's limit."""
    items, total, capacity = _parts(estimate)
    scale = (width - 20) / (max(total, capacity or 0) or 1)
    row, top = 20, 64
    height = top + 18 + row * len(items)
    sentence = _sentence(total, capacity, bool(estimate.gpu))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'role="img" font-family="sans-serif" font-size="13">',
        f"<title>{escape(title)}</title><desc>{escape(sentence)}</desc>",
        f'<text x="10" y="20" font-weight="bold">{escape(title)}: {escape(sentence)}</text>',
    ]
    left = 10.0
    for i, (name, size) in enumerate(items):
        label = f"{name}: {size / GIB:.2f} GiB"
        colour = COLOURS[i % len(COLOURS)]
        parts.append(
            f'<rect x="{left:.1f}" y="30" width="{size * scale:.1f}" height="28" fill="{colour}">'
            f"<title>{escape(label)}</title></rect>"
        )
        y = top + 18 + row * i
        parts.append(f'<rect x="10" y="{y - 11}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="28" y="{y}">{escape(label)} ({size / total:.1%})</text>')
        left += size * scale
    if capacity is not None:
        x = 10 + capacity * scale
        parts.append(f'<rect x="10" y="30" width="{capacity * scale:.1f}" height="28" fill="none" stroke="#333"/>')
        parts.append(f'<line x1="{x:.1f}" y1="26" x2="{x:.1f}" y2="62" stroke="{OVER}" stroke-width="2"/>')
    return "\n".join([*parts, "</svg>", ""])


def _parts(estimate: MemoryEstimate) -> tuple[list[tuple[str, int]], int, int | None]:
    """Return the items, largest first, their total, and the capacity; of the host where there is no GPU."""
    items = estimate.gpu or estimate.host
    ordered = sorted(items.items(), key=lambda item: -item[1])
    return ordered, sum(items.values()), estimate.capacity if estimate.gpu else None


def _sentence(total: int, capacity: int | None, on_gpu: bool) -> str:
    if capacity is None:
        return f"{total / GIB:.1f} GiB {'a GPU, whose memory is not known' if on_gpu else 'of host memory on a node'}"
    if total > capacity:
        return (
            f"{total / GIB:.1f} GiB, {(total - capacity) / GIB:.1f} GiB more than the card's {capacity / GIB:.1f} GiB"
        )
    return f"{total / GIB:.1f} of {capacity / GIB:.1f} GiB, {(capacity - total) / GIB:.1f} GiB free"


def _widths(sizes: Sequence[int], width: float) -> list[int]:
    """Share ``width`` characters out by size so that their sum is right: borders are rounded, not parts."""
    total, borders, below = sum(sizes) or 1, [0], 0
    for size in sizes:
        below += size
        borders.append(round(width * below / total))
    return [after - before for before, after in pairwise(borders)]


def _paint(text: str, index: int, colour: bool) -> str:
    return f"\033[{ANSI[index % len(ANSI)]}m{text}\033[0m" if colour and text else text
