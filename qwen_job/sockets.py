"""Listen, connect to another node, and choose network interfaces, with IPv4 and IPv6.

- ``listen``: a server socket for both families
- ``reach``: connect to the first node; reports what it waits for, and fails early for a name that does not resolve
- ``Waiting``: print one line every half minute while waiting
- ``free_port``, ``leads_elsewhere``: a free local port; an address at which other nodes reach a name
- ``address_problem``: whether a text is the address of a web server
- ``choose_interface``: the interface for Gloo, from NCCL's syntax for interfaces
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping

from qwen_job.errors import EnvironmentFault

CONNECT_SECONDS = 10.0
REPORT_SECONDS = 30.0
# A busy resolver answers within this time; after it, the name is unknown.
RESOLVE_SECONDS = 10.0
HOW_TO_NAME = (
    "give the first node an address that the others know: NodeAddr in slurm.conf on Slurm, "
    "hostfile.master_addr over ssh"
)


class UnknownName(OSError):
    """A host name that does not resolve on this node; waiting does not help."""


class Waiting:
    """Prints a line every ``REPORT_SECONDS`` while this node waits for others."""

    def __init__(self, seconds: float, say: Callable[[str], None] | None = None) -> None:
        self._began = self._last = time.monotonic()
        self._seconds = seconds
        self._say = say or _to_stderr

    @property
    def left(self) -> float:
        """Return the seconds left; negative once the time is over."""
        return self._began + self._seconds - time.monotonic()

    def report(self, what: str) -> None:
        """Print what this node waits for, and for how long, if half a minute has passed."""
        now = time.monotonic()
        if now - self._last >= REPORT_SECONDS:
            self._last = now
            passed = now - self._began
            self._say(f"{socket.gethostname()}: {passed:.0f} of {self._seconds:.0f} s: waiting for {what}")


def _to_stderr(line: str) -> None:
    print(f"qwen-job: {line}", file=sys.stderr, flush=True)


def listen(port: int = 0, backlog: int = 1024) -> socket.socket:
    """Return a socket that listens on ``port`` (0: any) of all addresses, IPv4 and IPv6 where the machine has it."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
        except OSError:
            if port and not _is_free_v4(port):
                raise
    return socket.create_server(("", port), backlog=backlog)


def _is_free_v4(port: int) -> bool:
    """Return whether IPv4 can listen on the port; IPv6 may be compiled in but disabled."""
    try:
        socket.create_server(("", port)).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """Return a free port on this machine."""
    with listen() as probe:
        return int(probe.getsockname()[1])


def plain(address: str) -> str:
    """Return the plain form of an IPv4 address that a dual-stack socket wrote as ``::ffff:a.b.c.d``."""
    return address.removeprefix("::ffff:") if "." in address else address


def endpoint(host: str, port: int) -> str:
    """Return host and port, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reach(
    host: str, port: int, waiting: Waiting, *, pause: float = 0.1, resolve_seconds: float = RESOLVE_SECONDS
) -> socket.socket:
    """Connect to ``host``:``port``, retrying until ``waiting`` is over.

    Raises:
        UnknownName: the name did not resolve for ``resolve_seconds``.
        OSError: the last error, once the time is over.
    """
    unknown_since: float | None = None
    while True:
        try:
            return socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        except socket.gaierror as error:
            unknown_since = unknown_since or time.monotonic()
            if time.monotonic() - unknown_since >= resolve_seconds:
                raise UnknownName(f"the name {host} does not resolve here: {error.strerror}") from None
            reason = str(error.strerror)
        except OSError as error:
            unknown_since, reason = None, error.strerror or str(error)
            if waiting.left <= 0:
                raise
        waiting.report(f"{endpoint(host, port)} ({reason})")
        time.sleep(pause)


def leads_elsewhere(name: str) -> str:
    """Return an address at which other nodes reach ``name``, or "" if it is unknown or only resolves to loopback."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return ""
    addresses = [str(entry[4][0]) for entry in found]
    return next((a for a in addresses if not ipaddress.ip_address(a.partition("%")[0]).is_loopback), "")


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the interfaces that match NCCL_SOCKET_IFNAME's syntax, in the order of ``names``.

    The pattern is a comma-separated list of prefixes. A leading ``=`` means whole names, a leading ``^`` all others
    (NCCL's documentation of environment variables, NCCL_SOCKET_IFNAME).
    """
    rest = pattern.removeprefix("^")
    exact = rest.startswith("=")
    wanted = [word for word in rest.removeprefix("=").split(",") if word]

    def named(name: str) -> bool:
        return any(name == word if exact else name.startswith(word) for word in wanted)

    return [name for name in names if named(name) != pattern.startswith("^")]


def choose_interface(master: str) -> None:
    """Set GLOO_SOCKET_IFNAME to the name of the interface that leads to the host ``master``.

    Gloo does not support NCCL's prefixes, ``=`` or ``^``. Without the variable it uses the address of this host's name,
    which other nodes cannot reach if the name resolves to loopback (Debian's 127.0.1.1) or not at all.

    Raises:
        EnvironmentFault: this node has no such interface.
    """
    pattern = os.environ.get("GLOO_SOCKET_IFNAME")
    if not pattern and (not leads_elsewhere(master) or leads_elsewhere(socket.gethostname())):
        return
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    addresses = {
        name: [entry.address for entry in entries if entry.family in families]
        for name, entries in psutil.net_if_addrs().items()
    }
    try:
        os.environ["GLOO_SOCKET_IFNAME"] = interface_for(pattern or "^lo", master, addresses)
    except ValueError as error:
        raise EnvironmentFault(f"cluster.socket_interface, or GLOO_SOCKET_IFNAME in env: {error}") from None


def interface_for(pattern: str, toward: str, addresses: Mapping[str, list[str]]) -> str:
    """Return the interface for Gloo, which supports only whole names.

    ``addresses``: interface -> its addresses. If ``pattern`` matches several, prefer the one that leads to the host
    ``toward``, then the first that is not a loopback.

    Raises:
        ValueError: no interface with an address matches; lists the existing ones.
    """
    found = [name for name in matching(pattern, addresses) if addresses[name]]
    if not found:
        raise ValueError(f"{pattern!r} names no network interface of this node: it has {', '.join(sorted(addresses))}")
    here = address_toward(toward)
    outer = [name for name in found if not ipaddress.ip_address(_bare(addresses[name][0])).is_loopback]
    return next((name for name in found if here in map(_bare, addresses[name])), (outer or found)[0])


def _bare(address: str) -> str:
    return address.partition("%")[0]


def address_toward(host: str) -> str:
    """Return the local address used to reach ``host``, without sending a packet."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)
            return _bare(str(probe.getsockname()[0]))
    except OSError:
        return ""


def address_problem(url: str) -> str:
    """Return why a text is no address of a webhook, without repeating it; empty if it is one."""
    form = "must hold an address such as https://HOST/PATH"
    if not re.fullmatch(r"[!-~]+", url):
        return f"contains a space or a character that no address has: it {form}"
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    return "" if good else f"is not an http:// or https:// address: it {form}"
