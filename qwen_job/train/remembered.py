"""Which state in memory a run resumes from: the newest that the nodes have for all ranks, verified.

- ``Neighbourhood``: this rank's node among the nodes that keep states, and what each of them has
- ``find_remembered``: the choice, the same on every rank; states that this node lacks come from another one
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from qwen_job.facts.choices import MemorySaveSteps
from qwen_job.run import states as memory
from qwen_job.run.config import DeepSpeedConfig
from qwen_job.run.states import State
from qwen_job.train.deepspeed_config import expert_parallel_size, zero_stage
from qwen_job.train.neighbour import Address, Server, adopt, fetch
from qwen_job.train.rendezvous import Place, tell

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_KEY = "memory"


class Offer(NamedTuple):
    """What one node has: its address for others, and (node, step) of its states."""

    address: Address | None
    states: tuple[tuple[int, int], ...]


class Source(NamedTuple):
    """The node that has the state of ``node`` at ``step``."""

    holder: int
    node: int
    step: int


class Remembered(NamedTuple):
    """A state of all ranks: its step, and where this node has its part."""

    step: int
    path: Path


class Neighbourhood:
    """The nodes of a run that keep states in memory, seen from one rank. A collective of all ranks builds it."""

    def __init__(
        self, run: Path, home: Path, place: Place, store: Store, zero_stage: int, expert_parallel_size: int = 1
    ) -> None:
        self.run, self.home, self.place, self.store = run, home, place, store
        self.ranks = local_world_size()
        self.node, self.nodes = place.rank // self.ranks, place.world_size // self.ranks
        self.zero_stage, self.expert_parallel_size = zero_stage, expert_parallel_size
        self.leads = place.local_rank == 0
        self.token = tell(store, f"{_KEY}/token", place.is_first, lambda: secrets.token_hex(16))
        serves = self.leads and self.nodes > 1
        self.server = Server(self.states, self.token, place.address) if serves else None
        self.offers = [self._offer(node) for node in range(self.nodes)]

    def states(self) -> list[State]:
        """Return what this host has that could belong to these ranks, newest first."""
        shape = (self.nodes, self.place.world_size, self.zero_stage, self.expert_parallel_size)
        own, *others = self.home, *(home for home in memory.homes_here(self.run, self.home.parent) if home != self.home)
        found = memory.states([own, *others])
        return [state for state in found if _shape_of(state) == shape]

    def _offer(self, node: int) -> Offer:
        def mine() -> str:
            address = self.server.address if self.server else None
            return json.dumps([address, [(state.node, state.step) for state in self.states()]])

        text = tell(self.store, f"{_KEY}/offer/{node}", self.leads and node == self.node, mine)
        address, states = json.loads(text)
        return Offer(Address(*address) if address else None, tuple((node, step) for node, step in states))

    def bring(self, source: Source) -> str:
        """Put the state of this node into its folder, if it is elsewhere; returns why that failed, or ""."""
        if source.holder != self.node:
            address = self.offers[source.holder].address
            return fetch(address, self.token, source.node, source.step, self.home) if address else "no address"
        state = self.own(source.step)
        if state is None:
            return "it is gone"
        return "" if state.path.is_relative_to(self.home) else adopt(state, self.home)

    def own(self, step: int) -> State | None:
        """Return the state of this node's ranks at ``step``; the one in its own folder first."""
        found = [state for state in self.states() if (state.node, state.step) == (self.node, step)]
        return min(found, key=lambda state: not state.path.is_relative_to(self.home), default=None)


def local_world_size() -> int:
    """Return the number of ranks on this node, from the launcher's environment."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def neighbourhood(
    run: Path,
    place: Place,
    store: Store,
    deepspeed: DeepSpeedConfig,
    every: MemorySaveSteps,
    say: Callable[[str], None],
) -> Neighbourhood | None:
    """Return the nodes that keep states in memory; None unless every node does. A collective of all ranks."""
    split = expert_parallel_size(deepspeed)
    home = os.environ.get(memory.HOME, "")
    ranks = local_world_size()
    leaders = range(0, place.world_size, ranks)
    homes = [tell(store, f"{_KEY}/home/{rank}", place.rank == rank, lambda: home) for rank in leaders]
    without = [node for node, found in enumerate(homes) if not found]
    if without and len(without) < len(leaders):
        say(f"no state is kept in memory: node {', '.join(map(str, without[:8]))} has no room for it")
    elif without and every != "auto":
        say(f"train.memory_save_steps: {every} is ignored: only the job's own launcher keeps states in memory")
    elif not without and split > 1 and len(leaders) > 1:
        say("no state is kept in memory: of several nodes, only the first would have the experts that ranks split")
        return None
    return None if without else Neighbourhood(run, Path(home), place, store, zero_stage(deepspeed), split)


def _shape_of(state: State) -> tuple[int, int, int, int]:
    return state.nodes, state.world_size, state.zero_stage, state.expert_parallel_size


def find_remembered(around: Neighbourhood, least: int, say: Callable[[str], None]) -> Remembered | None:
    """Return the newest state in memory of all ranks that is verified; None without one of step ``least`` or later.

    ``least``: the step of the newest checkpoint on disk; rank 0's counts. A collective of all ranks.
    """
    place, store = around.place, around.store
    least = int(tell(store, f"{_KEY}/least", place.is_first, lambda: str(least)))
    refused: set[Source] = set()
    for number, sources in enumerate(candidates(around.offers, least, refused)):
        mine = sources[around.node]
        name = f"{_KEY}/{number}"
        failed = tell(store, f"{name}/brought/{around.node}", around.leads, lambda: around.bring(mine))  # noqa: B023
        reason = failed or _damage(around, mine.step)
        faults = json.loads(_shared(around, name, f"{around.node} {reason}" if reason else ""))
        for fault in faults:
            node, _, what = fault.partition(" ")
            source = sources[int(node)]
            refused.add(source)
            origin = "" if source.holder == source.node else f" as node {source.holder} has it"
            say(f"memory: step {source.step} of node {node}{origin} is skipped: {what}")
        if not faults:
            _report_copies(sources, say)
            return Remembered(mine.step, memory.state_path(around.home, around.node, mine.step))
    return None


def candidates(offers: list[Offer], least: int, refused: set[Source]) -> Iterator[list[Source]]:
    """Yield a source for every node's state at one step, the newest first; ``refused`` grows between two of them."""
    steps = sorted({step for offer in offers for _, step in offer.states if step >= max(least, 1)}, reverse=True)
    for step in steps:
        while True:
            found = [_source(offers, node, step, refused) for node in range(len(offers))]
            sources = [source for source in found if source is not None]
            if len(sources) < len(offers):
                break
            before = len(refused)
            yield sources
            if len(refused) == before:
                break


def _source(offers: list[Offer], node: int, step: int, refused: set[Source]) -> Source | None:
    """Return who has the state of ``node``: the node itself, if it can be used, else any other."""
    holders = [holder for holder, offer in enumerate(offers) if (node, step) in offer.states]
    possible = [source for holder in holders if (source := Source(holder, node, step)) not in refused]
    return min(possible, key=lambda source: source.holder != node, default=None)


def _damage(around: Neighbourhood, step: int) -> str:
    state = around.own(step)
    return memory.damage(state, around.place.local_rank, around.ranks) if state else "it is gone"


def _shared(around: Neighbourhood, name: str, mine: str) -> str:
    """Return every rank's complaint, collected by rank 0, as JSON."""
    place, store = around.place, around.store

    def collected() -> str:
        found = [mine] if mine else []
        for rank in range(1, place.world_size):
            text = tell(store, f"{name}/rank/{rank}", False, str)
            found += [text] if text else []
        return json.dumps(list({text.split()[0]: text for text in found}.values()))

    if not place.is_first:
        tell(store, f"{name}/rank/{place.rank}", True, lambda: mine)
    return tell(store, f"{name}/verdict", place.is_first, collected)


def _report_copies(sources: list[Source], say: Callable[[str], None]) -> None:
    for source in sources:
        if source.holder != source.node:
            say(f"memory: the state of node {source.node} comes from the copy on node {source.holder}")
