"""A page and its Chinese twin say the same: sections, code, tables, lists and named fields, in the same order."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
TWINS = sorted([*CHECKOUT.glob("*.zh-CN.md"), *CHECKOUT.glob("docs/*.zh-CN.md")])
_SUFFIX = ".zh-CN.md"
# A field, a command or a file that a sentence names; words of prose are translated.
_NAMED = re.compile(r"`([^`\n]+)`")


class Section(NamedTuple):
    """One section of a page: the depth of its heading, and what it is made of."""

    depth: int
    blocks: list[str]
    rows: list[int]
    items: int
    named: Counter[str]


def sections(page: Path) -> list[Section]:
    """Return the sections of a page, the part before its first heading included."""
    text = page.read_text("utf-8")
    blocks = re.findall(r"^```.*?^```", text, flags=re.MULTILINE | re.DOTALL)
    bare = re.sub(r"^```.*?^```", "\0", text, flags=re.MULTILINE | re.DOTALL)
    found, used = [], 0
    for part in re.split(r"^(?=#+ )", bare, flags=re.MULTILINE):
        heading = re.match(r"#+", part)
        count = part.count("\0")
        found.append(
            Section(
                len(heading[0]) if heading else 0,
                [block.partition("\n")[0] for block in blocks[used : used + count]],
                [line.count("|") for line in part.splitlines() if line.startswith("|")],
                len(re.findall(r"^\s*(?:[-*]|\d+\.) ", part, flags=re.MULTILINE)),
                Counter(name.replace(_SUFFIX, ".md") for name in _NAMED.findall(part)),
            )
        )
        used += count
    return found


def english(page: Path) -> Path:
    return page.with_name(page.name.replace(_SUFFIX, ".md"))


@pytest.mark.parametrize("page", TWINS, ids=lambda page: page.name)
@pytest.mark.parametrize("part", ["depth", "blocks", "rows", "items"])
def test_twins_are_built_the_same(page: Path, part: str) -> None:
    theirs, ours = sections(english(page)), sections(page)
    assert [getattr(one, part) for one in ours] == [getattr(one, part) for one in theirs]


@pytest.mark.parametrize("page", TWINS, ids=lambda page: page.name)
def test_twins_name_the_same_fields_in_each_section(page: Path) -> None:
    differ = []
    for number, (theirs, ours) in enumerate(zip(sections(english(page)), sections(page), strict=True)):
        only_english, only_chinese = set(theirs.named) - set(ours.named), set(ours.named) - set(theirs.named)
        only_english = {name for name in only_english if name.isascii()}
        if only_english or only_chinese:
            differ.append(f"section {number}: English only {sorted(only_english)}, Chinese only {sorted(only_chinese)}")
    assert differ == []
