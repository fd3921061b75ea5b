"""States in memory: what is complete, what is damaged, whose a folder is, what is swept."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from qwen_job.run import states
from qwen_job.run.states import State, crc_of


def write_state(home: Path, node: int, step: int, nodes: int = 2, stage: int = 2) -> State:
    """Write the complete state of a node with one rank."""
    path = states.state_path(home, node, step)
    part = states.aside(path)
    names = ["latest", f"global_step{step}/shard_{node}.pt"]
    for name in names:
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).write_text(f"{name} of node {node} at {step}")
    state = State(node, step, path, nodes, nodes, stage, {name: crc_of(part / name) for name in names})
    states.publish(state)
    return state


def test_a_state_is_complete_once_its_manifest_is_written(tmp_path: Path) -> None:
    first, second = write_state(tmp_path, 0, 4), write_state(tmp_path, 1, 8)
    assert states.states([tmp_path]) == [second, first]
    (first.path / "manifest.json").unlink()
    assert states.states([tmp_path]) == [second]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}', '{"files": {"../x": [1, 2]}, "node": 0}', "\x00"])
def test_a_broken_manifest_is_no_state(tmp_path: Path, text: str) -> None:
    (write_state(tmp_path, 0, 4).path / "manifest.json").write_text(text)
    assert states.states([tmp_path]) == []


def test_a_manifest_under_another_name_is_no_state(tmp_path: Path) -> None:
    state = write_state(tmp_path, 0, 4)
    state.path.rename(state.path.with_name("step-5"))
    assert states.states([tmp_path]) == []


def test_every_damaged_file_is_found_by_one_of_the_ranks_that_share_the_reading(tmp_path: Path) -> None:
    state = write_state(tmp_path, 0, 4)
    assert [states.damage(state, place, 2) for place in (0, 1)] == ["", ""]
    for name in state.files:
        path = state.path / name
        whole = path.read_bytes()
        for broken in (whole[:-1], whole[::-1], b""):
            path.write_bytes(broken)
            found = [states.damage(state, place, 2) for place in (0, 1)]
            assert sorted(found) == ["", f"{name} does not match its checksum"]
        path.write_bytes(whole)
    path.unlink()
    assert any("cannot be read" in states.damage(state, place, 2) for place in (0, 1))


def test_pruning_keeps_one_step_of_every_node_and_nothing_unfinished(tmp_path: Path) -> None:
    for step in (4, 8):
        for node in (0, 1):
            write_state(tmp_path, node, step)
    states.aside(states.state_path(tmp_path, 0, 12)).mkdir()
    states.prune(tmp_path, 8)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")) == [
        "node-0/step-8",
        "node-1/step-8",
    ]


def test_a_state_is_written_into_the_files_of_one_that_is_no_longer_needed(tmp_path: Path) -> None:
    old, _, other = (write_state(tmp_path, node, step) for node, step in ((0, 4), (0, 8), (1, 8)))
    shard = (old.path / "global_step4" / "shard_0.pt").stat().st_ino
    path = states.state_path(tmp_path, 0, 12)
    states.make_room(path, keep=8)
    assert [state.step for state in states.states([tmp_path])] == [8, 8] and other.path.is_dir()
    name = "global_step12/shard_0.pt"
    with states.written(states.aside(path) / name) as file:
        file.write(b"12")
        assert os.fstat(file.fileno()).st_ino == shard
    states.publish(old._replace(step=12, path=path, files={name: crc_of(states.aside(path) / name)}))
    (found,) = (state for state in states.states([tmp_path]) if state.step == 12)
    assert states.damage(found) == "" and found.bytes == 2
    assert sorted(file.name for file in path.rglob("*") if file.is_file()) == ["manifest.json", "shard_0.pt"]


def test_states_of_nodes_that_are_no_neighbours_any_more_are_deleted(tmp_path: Path) -> None:
    for node in (0, 1, 2):
        write_state(tmp_path, node, 4)
    states.forget_nodes(tmp_path, {0, 2})
    assert sorted(state.node for state in states.states([tmp_path])) == [0, 2]


def test_a_folder_belongs_to_one_launcher_at_a_time(tmp_path: Path) -> None:
    lock = states.lock_home(tmp_path)
    assert lock is not None and states.lock_home(tmp_path) is None and not states.remove(tmp_path)
    lock.close()
    assert states.remove(tmp_path) and not tmp_path.exists()


def test_what_killed_launchers_of_other_runs_left_is_swept_after_a_while(tmp_path: Path) -> None:
    old, held, fresh, own = (states.home_of(Path(f"/runs/{name}"), 0, tmp_path) for name in ("a", "b", "c", "own"))
    for home in (old, held, fresh, own):
        write_state(home, 0, 4)
        (home / "lock").touch()
    before = time.time() - 3600
    for home in (old, held, own):
        for path in (home, home / "lock", home / "node-0"):
            os.utime(path, (before, before))
    lock = states.lock_home(held)
    assert lock is not None
    other = tmp_path / "qwen-job-notes-mine.txt"
    other.touch()
    assert states.sweep(Path("/runs/own"), tmp_path) == [old]
    assert sorted(tmp_path.iterdir()) == sorted([held, fresh, own, other])
    lock.close()


def test_a_link_or_another_user_s_folder_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, link = tmp_path / "home", tmp_path / "link"
    home.mkdir()
    link.symlink_to(home)
    assert states.is_ours(home) and not states.is_ours(link) and not states.is_ours(tmp_path / "none")
    monkeypatch.setattr(os, "geteuid", lambda: 123456)
    assert not states.is_ours(home)


def test_a_run_finds_its_folders_of_this_host_whatever_the_launchers_ranks_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("SLURMD_NODENAME", "node1")
    homes = [states.home_of(run, rank, tmp_path) for rank in (0, 3)]
    for home in homes:
        home.mkdir()
    states.home_of(tmp_path / "other", 0, tmp_path).mkdir()
    assert states.homes_here(run, tmp_path) == homes
    write_state(homes[1], 1, 12)
    assert states.newest_remembered(run, tmp_path) == 12
    monkeypatch.setenv("SLURMD_NODENAME", "node2")
    assert states.homes_here(run, tmp_path) == [] and states.newest_remembered(run, tmp_path) == -1
