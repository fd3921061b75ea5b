"""Both address families, names that do not resolve, and NCCL's way of naming interfaces."""

from __future__ import annotations

import socket
import time

import pytest

from qwen_job import sockets
from qwen_job.errors import EnvironmentFault
from qwen_job.sockets import UnknownName, Waiting, endpoint, interface_for, listen, matching, plain, reach

NAMES = ["lo", "eth0", "eth1", "ens1f0", "docker0", "ib0"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_listener_is_reached_by_either_family(host: str) -> None:
    with listen() as server, reach(host, server.getsockname()[1], Waiting(5)) as link:
        peer, address = server.accept()
        peer.close()
        assert plain(str(address[0])) in ("127.0.0.1", "::1")
        assert link.fileno() >= 0


def test_a_taken_port_is_refused() -> None:
    with listen() as server, pytest.raises(OSError, match="in use"):
        listen(server.getsockname()[1])


def test_a_name_that_does_not_resolve_is_final_and_says_so() -> None:
    with pytest.raises(UnknownName, match=r"no-such-host\.invalid does not resolve"):
        reach("no-such-host.invalid", 9, Waiting(600), resolve_seconds=0.0)


def test_waiting_says_what_for_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    waiting = Waiting(120, said.append)
    for second in range(100, 221, 5):
        now[0] = second
        waiting.report("node 3")
    assert [f"{s} of 120 s: waiting for node 3" in line for s, line in zip((30, 60, 90, 120), said, strict=True)]
    assert waiting.left == 0


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("eth", ["eth0", "eth1"]),
        ("=eth", []),
        ("=eth0,ib0", ["eth0", "ib0"]),
        ("ens,ib", ["ens1f0", "ib0"]),
        ("^lo,docker", ["eth0", "eth1", "ens1f0", "ib0"]),
        ("^=eth0", ["lo", "eth1", "ens1f0", "docker0", "ib0"]),
    ],
)
def test_interfaces_are_named_as_for_nccl(pattern: str, names: list[str]) -> None:
    assert matching(pattern, NAMES) == names


def test_gloo_gets_the_interface_that_leads_to_the_first_node() -> None:
    addresses = {"lo": ["127.0.0.1", "::1"], "eth0": ["192.0.2.7"], "eth1": ["198.51.100.7"], "eth2": []}
    assert interface_for("^docker", "127.0.0.1", addresses) == "lo"
    assert interface_for("eth", "host.invalid", addresses) == "eth0"
    assert interface_for("^lo,=eth0", "host.invalid", {**addresses, "=eth0": []}) in ("eth0", "eth1")
    with pytest.raises(ValueError, match=r"'=eth2' names no network interface.*eth0, eth1"):
        interface_for("=eth2", "127.0.0.1", addresses)


@pytest.mark.train
def test_an_interface_that_is_not_there_names_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "=nowhere7")
    with pytest.raises(EnvironmentFault, match=r"cluster\.socket_interface.*nowhere7"):
        sockets.choose_interface("127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "l")
    sockets.choose_interface("127.0.0.1")
    assert sockets.os.environ["GLOO_SOCKET_IFNAME"] == "lo"


@pytest.mark.parametrize(
    ("host", "text"), [("10.0.0.7", "10.0.0.7:80"), ("fd77::1", "[fd77::1]:80"), ("gpu01", "gpu01:80")]
)
def test_an_ipv6_address_is_written_in_brackets(host: str, text: str) -> None:
    assert endpoint(host, 80) == text


def test_a_v4_address_of_a_socket_of_both_families_is_written_as_usual() -> None:
    assert plain("::ffff:10.0.0.7") == "10.0.0.7"
    assert plain("fd77::1") == "fd77::1"
    assert socket.has_ipv6
