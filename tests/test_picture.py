"""The picture: the bar's parts add up, the card's end is where it is, SVG is XML whatever the names."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_job.picture import FILLS, GIB, Stack, bar, svg

HALF = Stack({"weights": 6 * GIB, "optimizer": 10 * GIB}, 32 * GIB)
OVER = Stack({"weights": 48 * GIB}, 32 * GIB)
HOST = Stack({"processes": 4 * GIB}, of="node")


def test_half_a_card_is_half_a_bar() -> None:
    first, drawn, largest, second = bar(HALF, width=64).split("\n")
    assert first == "16.0 of 32.0 GiB, 16.0 GiB free"
    assert len(drawn) == 66 and drawn.count("█") == 20 and drawn.count("▓") == 12
    assert "optimizer" in largest and "62.5%" in largest and "6.00 GiB" in second


def test_what_does_not_fit_stands_behind_the_cards_end() -> None:
    text = bar(OVER, width=60, title="A100")
    assert text.startswith("A100: 48.0 GiB, 16.0 GiB more than the card's 32.0 GiB")
    assert text.split("\n")[2].index("╵") == 41


def test_a_job_without_gpu_shows_its_host() -> None:
    assert bar(HOST).startswith("4.0 GiB of host memory on a node")


def test_colour_only_when_asked_for() -> None:
    assert "\033" not in bar(HALF) and "\033[34m" in bar(HALF, colour=True)


@pytest.mark.parametrize("stack", [HALF, OVER, HOST], ids=["half", "over", "host"])
def test_svg_has_a_rectangle_for_each_item_and_says_what_it_shows(stack: Stack) -> None:
    root = ElementTree.fromstring(svg(stack, title='<plan> & "co"'))
    space = "{http://www.w3.org/2000/svg}"
    assert root.findtext(f"{space}title") == '<plan> & "co"'
    assert "GiB" in (root.findtext(f"{space}desc") or "")
    assert len(root.findall(f"{space}rect/{space}title")) == len(stack.items)


def test_what_was_measured_is_drawn_on_the_same_scale_and_what_torch_does_not_allocate_stands_last() -> None:
    stack = Stack({"CUDA context": 8 * GIB, "weights": 6 * GIB, "optimizer": 2 * GIB}, 32 * GIB)
    assert [name for name, _ in stack.ordered] == ["weights", "optimizer", "CUDA context"]
    root = ElementTree.fromstring(svg(stack, width=340, measured=16 * GIB))
    drawn = {rect[0].text: rect.get("width") for rect in root.iter("{http://www.w3.org/2000/svg}rect") if len(rect)}
    assert drawn["weights: 6.00 GiB"] == "60.0" and drawn["measured peak: 16.00 GiB"] == "160.0"


@given(
    st.dictionaries(st.text("abc", min_size=1), st.integers(1, 2**45), min_size=1, max_size=len(FILLS)),
    st.integers(10, 200),
)
def test_the_bar_is_as_wide_as_asked(items: dict[str, int], width: int) -> None:
    drawn = bar(Stack(items), width=width).split("\n")[1]
    assert len(drawn) == width + 2
