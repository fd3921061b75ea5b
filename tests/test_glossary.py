"""The words of the pages and of the program are those of CONTRIBUTING.md's glossary.

The last column of the glossary lists phrases that are not to be used. They are searched in the pages (inline code is
exempt), and in the string literals, docstrings and comments of the package.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = CHECKOUT / "qwen_job"
HEADING = "## Glossary"


def forbidden(page: str) -> list[str]:
    """Return the phrases in the last column of the glossary's table."""
    rows = [line for line in page.partition(HEADING)[2].splitlines() if line.startswith("| ")]
    return [phrase for row in rows[1:] for phrase in re.findall(r"`([^`]+)`", row.rstrip(" |").rpartition(" | ")[2])]


def pattern(phrases: list[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of the phrases, also across a line break."""
    words = [r"\s+(?:[#*|]\s*)?".join(map(re.escape, phrase.split())) for phrase in phrases]
    latin = "|".join(word for word in words if word.isascii())
    others = "|".join(word for word in words if not word.isascii())
    return re.compile(rf"\b(?:{latin})\b|{others}", re.IGNORECASE)


PHRASES = forbidden((CHECKOUT / "CONTRIBUTING.md").read_text("utf-8"))
PATTERN = pattern(PHRASES)


def found(text: str, first: int = 1) -> Iterator[tuple[int, str]]:
    """Yield the line number and the phrase of every match."""
    for match in PATTERN.finditer(text):
        yield first + text.count("\n", 0, match.start()), " ".join(match[0].split())


def page_findings(path: Path) -> list[str]:
    """Return ``file:line: phrase`` for a page of text; inline code and the glossary itself are exempt."""
    text = path.read_text("utf-8")
    if path.name == "CONTRIBUTING.md":
        text = text.partition(HEADING)[0]
    text = re.sub(r"(?<!`)`[^`\n]+`(?!`)", "``", text)
    return [f"{path.relative_to(CHECKOUT)}:{line}: {phrase}" for line, phrase in found(text)]


def code_findings(path: Path) -> list[str]:
    """Return ``file:line: phrase`` for the strings, docstrings and comments of a module."""
    source = path.read_text("utf-8")
    pieces = [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
    ]
    pieces += comments(source)
    hits = sorted({hit for first, text in pieces for hit in found(text, first)})
    return [f"{path.relative_to(CHECKOUT)}:{line}: {phrase}" for line, phrase in hits]


def comments(source: str) -> list[tuple[int, str]]:
    """Return the comments with their first line; comments on consecutive lines are one."""
    blocks: list[tuple[int, list[str]]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, text = token.start[0], token.string.lstrip("# ")
        if blocks and blocks[-1][0] + len(blocks[-1][1]) == line:
            blocks[-1][1].append(text)
        else:
            blocks.append((line, [text]))
    return [(line, "\n".join(lines)) for line, lines in blocks]


def room_findings(room: Path) -> list[str]:
    """Return the findings of a room, or of a module on the ground floor."""
    files = [room] if room.is_file() else sorted(path for path in room.rglob("*") if path.is_file())
    hits = []
    for path in files:
        if path.suffix == ".py":
            hits += code_findings(path)
        elif path.suffix in (".j2", ".yaml"):
            hits += page_findings(path)
    return hits


def pages() -> list[Path]:
    """Return the pages and the files that users copy."""
    texts = [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md"), CHECKOUT / "charts" / "qwen-job" / "README.md"]
    texts += [*CHECKOUT.glob("configs/*.yaml"), *CHECKOUT.glob("configs/jobs/*.yaml")]
    return sorted({*texts, *CHECKOUT.glob("configs/sites/*.yaml")})


def rooms() -> list[Path]:
    """Return the rooms and the modules of the ground floor."""
    found = sorted(PACKAGE.iterdir())
    return [path for path in found if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__")]


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_a_page_uses_the_words_of_the_glossary(page: Path) -> None:
    hits = page_findings(page)
    assert not hits, "\n".join(hits)


@pytest.mark.parametrize("room", rooms(), ids=lambda path: path.name)
def test_a_room_uses_the_words_of_the_glossary(room: Path) -> None:
    hits = room_findings(room)
    assert not hits, "\n".join(hits)


def test_the_glossary_has_both_languages() -> None:
    page = (CHECKOUT / "CONTRIBUTING.md").read_text("utf-8").partition(HEADING)[2]
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 20
    assert [row[0] for row in rows if not row[1].strip()] == []


def test_a_phrase_is_found_across_lines_with_its_place() -> None:
    assert list(found("one\nthe job goes\n    on, and lies over it")) == [(2, "goes on"), (3, "lies over")]
    assert list(found("the wishbone algorithm; mega on; a categorical so-many")) == []
