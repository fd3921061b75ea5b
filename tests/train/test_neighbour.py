"""States go from node to node whole, or not at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_job.run import states
from qwen_job.train.neighbour import Address, Server, adopt, fetch
from tests.run.test_states import write_state

pytestmark = pytest.mark.train


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A node that has the state of node 1 at step 4."""
    home = tmp_path / "there"
    write_state(home, 1, 4)
    serving = Server(lambda: states.states([home]), "secret", "127.0.0.1")
    yield serving
    serving.close()


def test_a_state_arrives_as_it_was(tmp_path: Path, server: Server) -> None:
    home = tmp_path / "here"
    assert fetch(server.address, "secret", 1, 4, home) == ""
    (there,), (here,) = states.states([tmp_path / "there"]), states.states([home])
    assert here == there._replace(path=here.path) and states.damage(here) == ""
    assert fetch(server.address, "secret", 1, 4, home) == ""  # again, in its place


def test_a_copy_takes_the_files_of_the_one_before(tmp_path: Path, server: Server) -> None:
    home = tmp_path / "here"
    old = write_state(home, 1, 2)
    before = [(old.path / name).stat().st_ino for name in sorted(old.files)]
    write_state(home, 1, 3)
    assert fetch(server.address, "secret", 1, 4, home, keep=3) == ""
    found = {state.step: state for state in states.states([home])}
    assert sorted(found) == [3, 4] and states.damage(found[4]) == ""
    assert [(found[4].path / name).stat().st_ino for name in sorted(found[4].files)] == before


@pytest.mark.parametrize(("token", "node", "step"), [("wrong", 1, 4), ("secret", 0, 4), ("secret", 1, 8)])
def test_who_does_not_know_the_token_or_asks_for_something_else_gets_nothing(
    tmp_path: Path, server: Server, token: str, node: int, step: int
) -> None:
    assert "no longer has it" in fetch(server.address, token, node, step, tmp_path / "here")
    assert states.states([tmp_path / "here"]) == []


@pytest.mark.parametrize("request_line", [b"\n", b"{}\n", b"[1]\n", b"\xff\n", b'{"token": "secret"}\n'])
def test_a_request_that_is_none_ends_the_connection_only(tmp_path: Path, server: Server, request_line: bytes) -> None:
    with socket.create_connection(server.address, timeout=10) as connection:
        connection.sendall(request_line)
        assert connection.recv(1) == b""
    assert fetch(server.address, "secret", 1, 4, tmp_path / "here") == ""


def test_what_is_damaged_where_it_comes_from_is_refused(tmp_path: Path, server: Server) -> None:
    (state,) = states.states([tmp_path / "there"])
    path = state.path / "latest"
    path.write_bytes(path.read_bytes()[::-1])
    assert "latest does not match its checksum" in fetch(server.address, "secret", 1, 4, tmp_path / "here")
    assert list((tmp_path / "here").glob("*/*")) == []


def test_a_connection_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    state = write_state(tmp_path / "there", 1, 4)
    listener = socket.create_server(("127.0.0.1", 0))

    def half() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(states.manifest_text(state).encode() + b"only the beginning"[:5])

    thread = threading.Thread(target=half)
    thread.start()
    reason = fetch(Address("127.0.0.1", listener.getsockname()[1]), "secret", 1, 4, tmp_path / "here")
    thread.join()
    listener.close()
    assert "the connection ended in" in reason and list((tmp_path / "here").glob("*/*")) == []
    assert "refused" in fetch(Address("127.0.0.1", 1), "s", 1, 4, tmp_path)


def test_a_state_in_another_folder_of_the_host_is_linked(tmp_path: Path) -> None:
    state = write_state(tmp_path / "before", 1, 4)
    assert adopt(state, tmp_path / "now") == ""
    states.discard(state.path)
    (now,) = states.states([tmp_path / "now"])
    assert states.damage(now) == ""


def test_files_that_others_may_see_or_write_are_not_taken_over(tmp_path: Path) -> None:
    adopted, unfinished = write_state(tmp_path / "a", 0, 4), states.aside(states.state_path(tmp_path, 0, 6))
    unfinished.mkdir(parents=True)
    (unfinished / "latest").write_text("6")
    assert adopt(adopted, tmp_path) == ""
    path = states.state_path(tmp_path, 0, 12)
    with (unfinished / "latest").open() as held:
        states.make_room(path, keep=8)
        for name in ("latest", "global_step12/shard_0.pt"):
            with states.written(states.aside(path) / name) as file:
                file.write(b"new")
        assert held.read() == "6" and not unfinished.exists()
    assert states.damage(adopted) == ""
