"""What every page of ours has in common: one document without anything from elsewhere, its style, tables, its age."""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from qwen_job.text import visible

# Shows how old the page is, by the reader's clock.
_AGE_SCRIPT = """
const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
function showAge() {
  for (const place of document.querySelectorAll("time[datetime]")) {
    const age = Math.max(0, Math.round(Date.now() / 1000 - place.dateTime));
    const [size, unit] = units.find(([size]) => age >= size) || [1, "s"];
    const old = age > (place.dataset.overdue || Infinity);
    place.classList.toggle("old", old);
    place.title = place.title || place.textContent;
    place.textContent = `written ${Math.floor(age / size)} ${unit} ago · 写于 ${Math.floor(age / size)} ${unit} 前`
      + (old ? ": the run may have ended · 运行可能已结束" : "");
  }
}
showAge();
setInterval(showAge, 1000);
"""


def escape(text: str, quote: bool = True) -> str:
    """Escape text for HTML, and make control characters visible; line ends and tabs are kept."""
    return html.escape(visible(text, 20_000, keep="\n\t"), quote)


def document(title: str, body: Sequence[str], *, refresh: float = 0, script: str = "") -> str:
    """Return a page that needs nothing from elsewhere; a browser loads it again after ``refresh`` seconds, 0: never."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    again = f'<meta http-equiv="refresh" content="{max(5, refresh):.0f}">' if refresh else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{again}'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + f"\n</main><script>{_AGE_SCRIPT}{script}</script></body></html>\n"
    )


def age(written: float, live: float, more: str = "") -> str:
    """Return when a page was written; a browser shows its age instead, and warns when a live page is overdue.

    ``live``: seconds between two versions, 0 for a page that stays as it is; ``more``: what follows.
    """
    when = datetime.fromtimestamp(written, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    overdue = f' data-overdue="{3 * live:.0f}"' if live else ""
    shown = f'<time datetime="{written:.0f}"{overdue}>written · 写于 {when}</time>'
    return f'<p class="age">{shown}{f" · {escape(more)}" if more else ""}</p>'


def note(title: str, text: str) -> str:
    return f'<section><h2>{escape(title)}</h2><p class="none">{escape(text)}</p></section>'


def table(title: str, heading: list[str], rows: list[list[str]], kind: str = "") -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<section>{title and f"<h2>{escape(title)}</h2>"}<div class="wide"><table class="{kind}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )
