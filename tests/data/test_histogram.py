"""The picture of the samples' lengths and of what they hold."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from qwen_job.data.histogram import over, quantiles, segments, shown_ranges, svg

SVG = "{http://www.w3.org/2000/svg}"
COUNTS = {"<=32": 0, "<=64": 3, "<=128": 0, "<=256": 1, ">256": 2, ">512": 0}
NONE = {"prompt": 0, "reasoning": 0, "call": 0, "answer": 0}
KINDS = {**dict.fromkeys(COUNTS, NONE), "<=64": {**NONE, "prompt": 75, "answer": 25}, "<=256": {**NONE, "call": 200},
         ">256": {**NONE, "prompt": 600, "reasoning": 600}}  # fmt: skip


def test_bars_are_as_long_as_counts_and_divided_by_kind() -> None:
    root = ElementTree.fromstring(svg(COUNTS, KINDS, title="<data> & more", max_length=128))
    bars = [bar for bar in root.iter(f"{SVG}rect") if bar.attrib["height"] != "12"]
    widths = [float(bar.attrib["width"]) for bar in bars]
    # Three samples: 3 : 1 of prompt and answer; one sample of calls; two of prompt and reasoning.
    assert [round(width / (widths[0] + widths[1]), 2) for width in widths] == [0.75, 0.25, 0.33, 0.33, 0.33]
    colours = [bar.attrib["fill"] for bar in bars]
    assert colours[0] == colours[3] and len(set(colours)) == 4
    assert float(bars[1].attrib["x"]) == pytest.approx(float(bars[0].attrib["x"]) + widths[0], abs=0.1)


def test_ranges_legend_and_what_is_too_long_are_written() -> None:
    root = ElementTree.fromstring(svg(COUNTS, KINDS, title="<data> & more", max_length=128))
    texts = list(root.iter(f"{SVG}text"))
    assert [text.text for text in texts[:5]] == ["<data> & more", "prompt", "reasoning", "call", "answer"]
    assert [text.text for text in texts[5:]] == [
        "<=64", "3 (50.0%)", "<=128", "0 (0.0%)", "<=256", "1 (16.7%)", ">256", "2 (33.3%)"
    ]  # fmt: skip
    assert [text.text for text in texts if "fill" in text.attrib] == ["<=256", ">256"]


def test_no_samples_are_no_error() -> None:
    assert "0 (0.0%)" in svg(dict.fromkeys(COUNTS, 0), dict.fromkeys(COUNTS, NONE), title="none", max_length=128)
    assert shown_ranges(dict.fromkeys(COUNTS, 0)) == ["<=32"]


def test_the_tail_is_told_by_quantiles_and_by_what_is_over_a_row() -> None:
    lengths = {10: 900, 100: 90, 1000: 9, 50_000: 1}
    assert quantiles(lengths) == {"50%": 10, "90%": 10, "99%": 100, "99.9%": 1000}
    assert over(lengths, 1000) == (1, 49_000)
    assert (quantiles({}), over({}, 10)) == ({}, (0, 0))


@pytest.mark.parametrize(
    ("length", "kinds", "expected"),
    [
        (40, [3, 0, 0, 1], [30, 0, 0, 10]),
        (1, [1, 1], [0, 1]),
        (7, [1, 1, 1], [2, 3, 2]),
        (5, [0, 0], [0, 0]),
        (0, [4], [0]),
    ],
)
def test_a_bar_is_divided_without_a_gap(length: int, kinds: list[int], expected: list[int]) -> None:
    assert segments(length, kinds) == expected
