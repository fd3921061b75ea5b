"""Draw planned memory against GPU memory: a stacked bar as text for a terminal, and as SVG for a file or the report.

- ``Stack``: the items of a bar, and the capacity that they must fit into
- ``bar``: the bar as lines of text
- ``svg``: the bar as an image, with the measured peak below it if known
- ``write_svg``: write an image to the file given by --svg
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Literal

from qwen_job.atomic import write_atomically
from qwen_job.errors import EnvironmentFault, UsageError
from qwen_job.text import GIB, gib

# Each item has its own fill, so the bar is readable without colour. Colours of equal lightness from Okabe and Ito.
FILLS = "█▓▒░▚▞╳▤▥▦◧◩"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8C564B")
ANSI = (34, 33, 32, 35, 36, 31, 93, 90)
OVER, MEASURED = "#B00020", "#667085"
# Not allocated by torch, so not part of its measured peak: drawn last, so that the rest compares with the peak.
NOT_ALLOCATED = ("fragmentation", "held by the allocator", "CUDA context", "NCCL")
_WITHOUT_CARD = {
    "GPU": "a GPU, whose memory is not known",
    "node": "of host memory on a node",
    "process": "of memory in a process",
}


@dataclass(frozen=True)
class Stack:
    """Bytes by item ``of`` one GPU, node or process, and its capacity in bytes (None: unknown or unlimited)."""

    items: Mapping[str, int]
    capacity: int | None = None
    of: Literal["GPU", "node", "process"] = "GPU"

    @property
    def total(self) -> int:
        """Bytes of all items."""
        return sum(self.items.values())

    @property
    def ordered(self) -> list[tuple[str, int]]:
        """Return the items in drawing order: largest first, then those that torch does not allocate."""
        return sorted(self.items.items(), key=lambda item: (item[0] in NOT_ALLOCATED, -item[1]))

    @property
    def sentence(self) -> str:
        """Return the total, and how much is free or exceeds the capacity."""
        if self.capacity is None:
            return f"{gib(self.total)} {_WITHOUT_CARD[self.of]}"
        over, card = self.total - self.capacity, gib(self.capacity)
        if over > 0:
            return f"{gib(self.total)}, {gib(over)} more than the card's {card}"
        return f"{self.total / GIB:.1f} of {card}, {gib(-over)} free"


def bar(stack: Stack, *, width: int = 60, colour: bool = False, title: str = "") -> str:
    """Return the bar with a legend, as lines of text; ``width`` is the width of the bar in characters.

    The bar's frame ends at the capacity; any excess is drawn beyond it. Without a known capacity, the frame is the
    total.
    """
    total, capacity = stack.total, stack.capacity
    scale = max(total, capacity or 0) or 1
    widths = _widths([size for _, size in stack.ordered], width * total / scale)
    pieces = [_paint(FILLS[i % len(FILLS)] * n, i, colour) for i, n in enumerate(widths)]
    edge = round(width * (capacity or scale) / scale)
    drawn = "".join(pieces) + " " * max(0, edge - sum(widths))
    head = f"{title}: " if title else ""
    lines = [f"{head}{stack.sentence}", f"▕{drawn}▏"]
    if capacity is not None and total > capacity:
        lines.append(" " * (edge + 1) + "╵ the card ends here")
    longest = max((len(name) for name in stack.items), default=0)
    for i, (name, size) in enumerate(stack.ordered):
        fill = _paint(FILLS[i % len(FILLS)], i, colour)
        lines.append(f"  {fill} {name:{longest}} {size / GIB:9.2f} GiB {size / total:6.1%}")
    return "\n".join(lines)


def svg(stack: Stack, *, width: int = 720, title: str = "Memory", measured: float | None = None) -> str:
    """Return the bar as an SVG image with a title, a legend and the capacity, for a file or a page.

    ``measured`` bytes (the peak that torch allocated) are drawn as a second bar on the same scale.
    """
    total, capacity = stack.total, stack.capacity
    scale = (width - 20) / (max(total, capacity or 0, measured or 0) or 1)
    row, top = 20, 64 if measured is None else 86
    height = top + 18 + row * len(stack.items)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'role="img" font-family="sans-serif" font-size="13" fill="currentColor">',
        f"<title>{escape(title)}</title><desc>{escape(stack.sentence)}</desc>",
        f'<text x="10" y="20" font-weight="bold">{escape(title)}: {escape(stack.sentence)}</text>',
    ]
    left = 10.0
    for i, (name, size) in enumerate(stack.ordered):
        label, colour, y = f"{name}: {size / GIB:.2f} GiB", COLOURS[i % len(COLOURS)], top + 18 + row * i
        parts += [
            _rectangle(left, 30, size * scale, 28, colour, label),
            f'<rect x="10" y="{y - 11}" width="12" height="12" fill="{colour}"/>',
            f'<text x="28" y="{y}">{escape(label)} ({size / total:.1%})</text>',
        ]
        left += size * scale
    if measured is not None:
        label = f"measured peak: {measured / GIB:.2f} GiB"
        parts.append(_rectangle(10, 62, measured * scale, 10, MEASURED, label))
        parts.append(f'<text x="10" y="86" font-size="12">{escape(label)}</text>')
    if capacity is not None:
        x, low = 10 + capacity * scale, 62 if measured is None else 74
        parts.append(f'<rect x="10" y="30" width="{capacity * scale:.1f}" height="28" fill="none" stroke="#888"/>')
        parts.append(f'<line x1="{x:.1f}" y1="26" x2="{x:.1f}" y2="{low}" stroke="{OVER}" stroke-width="2"/>')
    return "\n".join([*parts, "</svg>", ""])


def write_svg(path: Path, picture: str) -> None:
    """Write an image to the file given by ``--svg``; replaces an existing SVG image, and nothing else.

    Raises:
        UsageError: the file name does not end in .svg.
        EnvironmentFault: the file exists and is not an SVG image, or cannot be written.
    """
    if path.suffix.lower() != ".svg":
        raise UsageError(f"--svg: {path} does not end in .svg; to get another format, convert the SVG in a browser")
    try:
        if path.exists() and not path.read_bytes().startswith(b"<svg"):
            raise EnvironmentFault(f"{path}: exists and is not an SVG image; choose another file")
        write_atomically(path, picture)
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written: {error.strerror}") from None


def _rectangle(x: float, y: int, width: float, height: int, colour: str, label: str) -> str:
    place = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}"'
    return f'<rect {place} fill="{colour}"><title>{escape(label)}</title></rect>'


def _widths(sizes: Sequence[int], width: float) -> list[int]:
    """Divide ``width`` characters in proportion to the sizes; borders are rounded so that the sum is exact."""
    total, borders, below = sum(sizes) or 1, [0], 0
    for size in sizes:
        below += size
        borders.append(round(width * below / total))
    return [after - before for before, after in pairwise(borders)]


def _paint(text: str, index: int, colour: bool) -> str:
    return f"\033[{ANSI[index % len(ANSI)]}m{text}\033[0m" if colour and text else text
