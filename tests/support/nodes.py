"""The nodes of a network test, as threads on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from qwen_job.node.network import Member, Verdict, check_network
from tests.support.ports import free_port


def first_member(nodes: int, **values: Any) -> Member:
    """Return the first of ``nodes`` nodes, with a free port."""
    return replace(Member(0, nodes, "127.0.0.1", free_port(), "7-0", meet_seconds=5.0), **values)


def verdicts(first: Member, ranks: Sequence[int]) -> list[Verdict]:
    """Run the test on ``ranks`` and return the verdict that each received."""
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(lambda rank: check_network(replace(first, rank=rank)), ranks))
