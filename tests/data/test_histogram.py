"""The picture of the samples' lengths."""

from __future__ import annotations

from xml.etree import ElementTree

from qwen_job.data.histogram import svg

SVG = "{http://www.w3.org/2000/svg}"
COUNTS = {"<=32": 0, "<=64": 3, "<=128": 0, "<=256": 1, ">256": 2, ">512": 0}


def test_bars_are_as_long_as_counts_and_what_is_too_long_stands_out() -> None:
    root = ElementTree.fromstring(svg(COUNTS, title="<data> & more", max_length=128))
    bars = [(float(bar.attrib["width"]), bar.attrib["fill"]) for bar in root.iter(f"{SVG}rect")]
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts[0] == "<data> & more"
    assert texts[1:] == ["<=64", "3 (50.0%)", "<=128", "0 (0.0%)", "<=256", "1 (16.7%)", ">256", "2 (33.3%)"]
    assert [round(width / bars[0][0], 2) for width, _ in bars] == [1, 0, 0.33, 0.67]
    assert bars[0][1] == bars[1][1] != bars[2][1] == bars[3][1]


def test_no_samples_are_no_error() -> None:
    assert "0 (0.0%)" in svg(dict.fromkeys(COUNTS, 0), title="none", max_length=128)
