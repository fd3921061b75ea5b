"""Host names, single and as Slurm ranges."""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

MAX_HOSTS = 100_000
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
# A label of a host name has at most 63 characters.
MAX_NUMBER_LENGTH = 60
_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def expand_hosts(patterns: Iterable[str]) -> list[str]:
    """Expand ``gpu[001-003,7]`` and plain names into host names, in order, without repeats.

    Raises:
        ValueError: not a host name, an empty or backward range, or more than 100,000 hosts.
    """
    hosts: dict[str, None] = {}
    made = 0
    for pattern in patterns:
        for part in _split(pattern):
            expanded = _expand(part.strip())
            made += len(expanded)
            if made > MAX_HOSTS:
                raise ValueError(f"{pattern[:80]!r} makes more than {MAX_HOSTS} hosts")
            for host in expanded:
                if not is_host(host):
                    raise ValueError(f"{host[:80]!r} is not a host name; {_instead(host)}")
                hosts[host] = None
    return list(hosts)


def is_host(text: str) -> bool:
    """Return whether ``text`` is a host name or an address, IPv4 or IPv6."""
    return bool(_HOST.fullmatch(text)) or _is_address(text)


def is_loopback(host: str) -> bool:
    """Return whether ``host`` resolves to the local machine everywhere."""
    if _is_address(host):
        address = ipaddress.ip_address(host)
        return address.is_loopback or address.is_unspecified
    if re.fullmatch(r"127(\.\d+){0,2}|0+", host):
        return True  # inet_aton(3) reads 127.1 as 127.0.0.1
    return host.lower().rstrip(".") in (
        "localhost",
        "localhost.localdomain",
        "localhost4",
        "localhost6",
        "ip6-localhost",
    )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _instead(host: str) -> str:
    user, at, rest = host.rpartition("@")
    name, colon, port = rest.partition(":")
    if (at or (colon and port.isdecimal())) and is_host(name):
        words = [*(["-l", user] if at else []), *(["-p", port] if colon else [])]
        options = ", ".join(f"'{word}'" if word.isdecimal() else word for word in words)
        return f"write {name}, and hostfile.ssh_options: [{options}]"
    return "write gpu01, gpu[001-128] or an address"


def check_total(patterns: Sequence[str]) -> None:
    """Reject patterns with more than 100,000 hosts in total, without expanding them.

    Raises:
        ValueError: there are more.
    """
    total = 0
    for pattern in patterns:
        for part in _split(pattern):
            product = 1
            for ranges in _BRACKET.findall(part):
                found = map(_RANGE.fullmatch, map(str.strip, ranges.split(",")))
                product *= sum(_length(one) for one in found if one) or 1
            total += product
    if total > MAX_HOSTS:
        raise ValueError(f"makes {total:,} hosts; at most {MAX_HOSTS:,}")


def _split(pattern: str) -> Iterator[str]:
    """Split at the commas outside brackets."""
    depth = begin = 0
    for found in re.finditer(r"[\[\],]", pattern):
        if found[0] == "," and depth <= 0:
            yield pattern[begin : found.start()]
            begin = found.end()
        elif found[0] != ",":
            depth += 1 if found[0] == "[" else -1
    yield pattern[begin:]


def _length(found: re.Match[str]) -> int:
    if max(map(len, found.groups(""))) > MAX_NUMBER_LENGTH:
        return 1
    return max(1, int(found[2] or found[1]) - int(found[1]) + 1)


def _expand(pattern: str) -> Sequence[str]:
    pieces = _BRACKET.split(pattern)
    choices = [[piece] if index % 2 == 0 else _numbers(piece) for index, piece in enumerate(pieces)]
    total = 1
    for choice in choices:
        total *= len(choice)
    if total > MAX_HOSTS:
        raise ValueError(f"{pattern[:80]!r} makes more than {MAX_HOSTS} hosts")
    return list(map("".join, itertools.product(*choices)))


def _numbers(ranges: str) -> list[str]:
    numbers: list[str] = []
    for item in ranges.split(","):
        found = _RANGE.fullmatch(item.strip())
        if not found:
            raise ValueError(f"[{ranges[:80]}] is not a range; write [001-128] or [1,3,7-9]")
        first, last = found[1], found[2] or found[1]
        if max(len(first), len(last)) > MAX_NUMBER_LENGTH:
            raise ValueError(f"[{ranges[:80]}] holds a number of more than {MAX_NUMBER_LENGTH} digits")
        if int(last) < int(first) or int(last) - int(first) >= MAX_HOSTS:
            raise ValueError(f"[{ranges[:80]}] runs backwards or is too long")
        if len(numbers) > MAX_HOSTS:
            raise ValueError(f"[{ranges[:80]}] makes more than {MAX_HOSTS} hosts")
        numbers += [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return numbers
