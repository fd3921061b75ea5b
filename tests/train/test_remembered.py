"""All ranks resume from the same state in memory: the newest that is whole, from whichever node has it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwen_job.run import states
from qwen_job.train.remembered import Neighbourhood, Offer, Remembered, Source, candidates, find_remembered
from tests.run.test_states import write_state

pytestmark = pytest.mark.train


def agree(homes: list[Path], least: int = 0, stage: int = 2) -> tuple[list[Remembered | None], list[str]]:
    """Return what the rank of each node resumes from, and what rank 0 reports; a thread stands for a rank."""
    from torch.distributed import HashStore

    from qwen_job.train.rendezvous import Place

    store, said = HashStore(), [list[str]() for _ in homes]

    def rank(number: int) -> Remembered | None:
        place = Place(number, len(homes), 0, "127.0.0.1", 1)
        # A run of its own for every node: otherwise this host's folders would all be one node's.
        around = Neighbourhood(homes[number], homes[number], place, store, stage)
        return find_remembered(around, least, said[number].append)

    with ThreadPoolExecutor(len(homes)) as pool:
        found = list(pool.map(rank, range(len(homes))))
    return found, said[0]


@pytest.fixture
def homes(tmp_path: Path) -> list[Path]:
    """Two nodes with states of steps 4 and 8: their own, and the neighbour's."""
    found = [tmp_path / "first", tmp_path / "second"]
    for home in found:
        for node in (0, 1):
            write_state(home, node, 4)
            write_state(home, node, 8)
    return found


def damage(home: Path, node: int, step: int) -> None:
    (states.state_path(home, node, step) / "latest").write_text("something else")


def test_every_node_resumes_from_its_own_state(homes: list[Path]) -> None:
    found, said = agree(homes)
    assert found == [Remembered(8, states.state_path(home, node, 8)) for node, home in enumerate(homes)]
    assert said == []


def test_a_lost_node_s_state_comes_from_its_neighbour(homes: list[Path]) -> None:
    lost = homes[1]
    for node in (0, 1):
        for step in (4, 8):
            states.discard(states.state_path(lost, node, step))
    found, said = agree(homes)
    assert found[1] == Remembered(8, states.state_path(lost, 1, 8)) and found[1].path.is_dir()
    assert said == ["memory: the state of node 1 comes from the copy on node 0"]


def test_a_damaged_state_is_replaced_by_the_neighbour_s_copy_then_by_an_older_one_then_by_none(
    homes: list[Path],
) -> None:
    damage(homes[0], 0, 8)
    found, said = agree(homes)
    assert [each and each.step for each in found] == [8, 8]
    assert said[0] == "memory: step 8 of node 0 is skipped: latest does not match its checksum"
    damage(homes[0], 0, 8)
    damage(homes[1], 0, 8)
    found, said = agree(homes)
    assert [each and each.step for each in found] == [4, 4]
    assert "step 8 of node 0 as node 1 has it is skipped" in said[1]
    for home in homes:
        damage(home, 1, 4)
        damage(home, 0, 8)
    found, said = agree(homes)
    assert found == [None, None] and len(said) == 4


def test_both_nodes_lost_or_an_older_step_than_on_disk_is_nothing(homes: list[Path], tmp_path: Path) -> None:
    assert agree([tmp_path / "a", tmp_path / "b"]) == ([None, None], [])
    assert agree(homes, least=9)[0] == [None, None]
    assert [each and each.step for each in agree(homes, least=8)[0]] == [8, 8]


def test_a_state_of_another_zero_stage_or_number_of_nodes_is_nothing(homes: list[Path]) -> None:
    assert agree(homes, stage=3)[0] == [None, None]
    assert agree([*homes, homes[0]])[0] == [None] * 3


def test_nodes_that_changed_places_exchange_their_states(homes: list[Path]) -> None:
    for home, node in zip(homes, (0, 1), strict=True):
        for step in (4, 8):
            states.discard(states.state_path(home, node, step))
    found, said = agree(homes)
    assert [each and each.step for each in found] == [8, 8] and len(said) == 2


def test_candidates_are_newest_first_and_prefer_the_node_itself() -> None:
    offers = [Offer(None, ((0, 8), (1, 8), (0, 4))), Offer(None, ((1, 8), (0, 8), (1, 4), (1, 12)))]
    refused: set[Source] = set()
    found = candidates(offers, 0, refused)
    assert next(found) == [Source(0, 0, 8), Source(1, 1, 8)]
    refused.add(Source(1, 1, 8))
    assert next(found) == [Source(0, 0, 8), Source(0, 1, 8)]
    refused.add(Source(0, 1, 8))
    assert next(found) == [Source(0, 0, 4), Source(1, 1, 4)]
    assert list(found) == []
