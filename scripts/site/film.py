"""Draw a recorded terminal (asciicast v2) as one SVG that plays by itself, with no script and no font to load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

import pyte

WIDTH, HEIGHT = 8.4, 18  # pixels of a character
MARGIN = 14
# The longest that a frame stays, and the shortest, in seconds; the last one stays for LAST.
LONGEST, SHORTEST, LAST = 1.2, 0.12, 5.0
COLOURS = {
    "black": "#4b5263", "red": "#e06c75", "green": "#98c379", "brown": "#e5c07b", "blue": "#61afef",
    "magenta": "#c678dd", "cyan": "#56b6c2", "white": "#dcdfe4", "default": "#dcdfe4",
}  # fmt: skip


class Frame(NamedTuple):
    """What the terminal showed, a row of markup each, and for how many seconds."""

    rows: tuple[str, ...]
    seconds: float


def film(cast: Path) -> str:
    """Return a recording as SVG. Pauses are cut to ``LONGEST``; who wants no motion sees the last frame."""
    head, *lines = cast.read_text("utf-8").splitlines()
    size = json.loads(head)
    frames = list(_frames(size["width"], size["height"], [json.loads(line) for line in lines]))
    width, height = size["width"] * WIDTH + 2 * MARGIN, size["height"] * HEIGHT + 2 * MARGIN
    known: dict[str, int] = {}
    shots = []
    for number, frame in enumerate(frames):
        uses = [
            f'<use href="#r{known.setdefault(row, len(known))}" y="{line * HEIGHT}"/>'
            for line, row in enumerate(frame.rows) if row
        ]  # fmt: skip
        shots.append(f'<g transform="translate(0 {number * height:.0f})">{"".join(uses)}</g>')
    rows = "".join(f'<text id="r{number}" y="13" xml:space="preserve">{row}</text>' for row, number in known.items())
    return _SVG.format(
        width=f"{width:.0f}", height=f"{height:.0f}", rows=rows, shots="".join(shots), margin=MARGIN,
        seconds=f"{sum(frame.seconds for frame in frames):.1f}", keys=_keys(frames, height),
        last=f"{-(len(frames) - 1) * round(height)}", foreground=COLOURS["default"],
    )  # fmt: skip


def _keys(frames: list[Frame], height: float) -> str:
    """Return the keyframes: at which share of the time the film moves on to which frame."""
    total, at, parts = sum(frame.seconds for frame in frames), 0.0, []
    for number, frame in enumerate(frames):
        parts.append(f"{100 * at / total:.3f}%{{transform:translateY({-number * round(height)}px)}}")
        at += frame.seconds
    return "".join(parts) + f"100%{{transform:translateY({-(len(frames) - 1) * round(height)}px)}}"


def _frames(columns: int, lines: int, events: list[list[object]]) -> Iterator[Frame]:
    screen = pyte.Screen(columns, lines)
    stream = pyte.Stream(screen)
    shown: tuple[str, ...] | None = None
    since = 0.0
    for (moment, _, text), following in zip(events, [*events[1:], None], strict=True):
        stream.feed(str(text))
        now = float(str(moment))
        until = float(str(following[0])) if following else now + LAST
        # What is over at once is not worth a frame.
        if following and until - since < SHORTEST:
            continue
        rows = tuple(_row(screen, number) for number in range(lines))
        if rows != shown:
            yield Frame(rows, LAST if following is None else max(SHORTEST, min(LONGEST, until - since)))
            shown = rows
        since = until


def _row(screen: pyte.Screen, number: int) -> str:
    """Return a row as tspans, one for each run of characters that look the same, without its empty end."""
    cells = [screen.buffer[number][column] for column in range(screen.columns)]
    while cells and cells[-1].data in ("", " "):
        cells.pop()
    parts: list[str] = []
    start = 0
    while start < len(cells):
        end, style = start + 1, (cells[start].fg, cells[start].bold)
        wide = len(cells[start].data.encode()) > 2
        # Wide characters get a place of their own, because a font may draw them wider or narrower than two others.
        while end < len(cells) and not wide and (cells[end].fg, cells[end].bold) == style and _narrow(cells[end].data):
            end += 1
        text = "".join(cell.data for cell in cells[start:end])
        if text.strip():
            colour = COLOURS.get(style[0], f"#{style[0]}" if len(style[0]) == 6 else COLOURS["default"])
            look = "" if colour == COLOURS["default"] else f' fill="{colour}"'
            look += ' font-weight="bold"' if style[1] else ""
            parts.append(f'<tspan x="{start * WIDTH:.1f}"{look}>{escape(text, quote=False)}</tspan>')
        start = end
    return "".join(parts)


def _narrow(text: str) -> bool:
    return len(text.encode()) <= 2 and text != ""


_SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">
<style>
text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:{foreground}}}
#film{{animation:film {seconds}s step-end infinite}}
@keyframes film{{{keys}}}
@media (prefers-reduced-motion:reduce){{#film{{animation:none;transform:translateY({last}px)}}}}
</style>
<defs>{rows}</defs>
<rect width="100%" height="100%" rx="8" fill="#23272e"/>
<svg x="{margin}" y="{margin}"><g id="film">{shots}</g></svg>
</svg>
"""
