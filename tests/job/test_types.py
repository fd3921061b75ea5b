"""Durations, host ranges and the small types."""

from __future__ import annotations

import pytest

from qwen_job.hosts import expand_hosts
from qwen_job.job.types import seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90s", 90),
        ("2h30m", 9000),
        ("1d", 86400),
        ("12:30:00", 45000),
        ("1-00:00:00", 86400),
        ("1-12:30", 131400),
        (90, 90),
    ],
)
def test_durations(text: object, value: int) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "soon", "1x", "1:2:3:4", "-5s", "h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        seconds(text)


@pytest.mark.parametrize(
    ("patterns", "hosts"),
    [
        (["a", "b,c"], ["a", "b", "c"]),
        (["gpu[08-11]"], ["gpu08", "gpu09", "gpu10", "gpu11"]),
        (["r[1,3]n[1-2]-ib"], ["r1n1-ib", "r1n2-ib", "r3n1-ib", "r3n2-ib"]),
        (["a", "a", "b"], ["a", "b"]),
        (["10.0.0.7", "fe80::1"], ["10.0.0.7", "fe80::1"]),
    ],
)
def test_host_ranges(patterns: list[str], hosts: list[str]) -> None:
    assert expand_hosts(patterns) == hosts


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("", "host name"), ("-oProxyCommand=x", "host name"), ("a;b", "host name"), ("a[x]", "not a range"),
        ("a[1", "host name"), ("a[2-1]", "backwards"), ("a[1-200000]", "too long"), ("a[1-999]b[1-999]", "more than"),
    ],
)  # fmt: skip
def test_what_is_no_host(pattern: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        expand_hosts([pattern])


def test_the_number_of_hosts_is_bounded_over_all_patterns() -> None:
    with pytest.raises(ValueError, match="more than"):
        expand_hosts(["a[1-60000]", "b[1-60000]"])
