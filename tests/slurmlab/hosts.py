"""Hosts made of Linux namespaces, connected by a bridge in its own namespace."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 3
NETWORK = "10.77.0."
NETWORK_6 = "fd77::"

# Read the process ID that the caller sees first: /proc is the caller's until it is remounted.
_SWITCH_INIT = """
read -r outer _ </proc/self/stat
mount -t proc proc /proc
ip link set lo up && ip link add br0 type bridge && ip link set br0 up || exit
echo "$outer"; exec >/dev/null
while :; do sleep infinity & wait $!; done
"""

# Each host has its own Slurm, ssh and hosts files, and node-local /tmp, /run and /dev/shm, as on a real cluster. The
# user's start-up files are empty: a session that is killed in the middle of one could leave a lock behind.
_HOST_INIT = """
name=$0 root=$1
read -r outer _ </proc/self/stat
cd / || exit
mount -t proc proc /proc && hostname "$name" && ip link set lo up || exit
mount --bind "$root/etc/hosts" /etc/hosts || exit
mount --bind "$root/etc/slurm" /etc/slurm || exit
[ ! -f "$root/etc/ssh_config" ] || mount --bind "$root/etc/ssh_config" /etc/ssh/ssh_config || exit
for file in ~/.bashrc ~/.bash_profile ~/.profile; do
    [ ! -f "$file" ] || mount --bind /dev/null "$file" || exit
done
new=$root/mnt/$name
mkdir -p "$new" && mount -t tmpfs -o mode=1777 tmpfs "$new" || exit
while IFS= read -r path; do
    mkdir -p "$new/${path#/tmp/}" && mount --bind "$path" "$new/${path#/tmp/}" || exit
done <"$root/etc/shared"
mount --move "$new" /tmp || exit
mount -t tmpfs -o mode=1777 tmpfs /dev/shm || exit
mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/sshd /run/lock || exit
echo "$outer"; exec >/dev/null
while :; do sleep infinity & wait $!; done
"""


class LabError(Exception):
    """The lab failed; the message ends with the tail of the log that explains why."""


def tail(path: Path, lines: int = 15) -> str:
    """Return the last lines of a log for an error message, or nothing if it is missing."""
    with contextlib.suppress(OSError):
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    return ""


def wait_for(check: Callable[[], T], timeout: float, what: str, why: Callable[[], str] = str) -> T:
    """Call ``check`` until its result is true and return it; ``why`` explains a timeout.

    ``timeout`` is in seconds for a quiet machine; the limit is PATIENCE times as long, for a busy one.

    Raises:
        LabError: the time is up.
    """
    deadline = time.monotonic() + timeout * PATIENCE
    while True:
        if result := check():
            return result
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout * PATIENCE:g} s\n{why()}".rstrip())
        time.sleep(0.05)


def born(pid: int) -> str:
    """Return a process's start time in clock ticks, or "" if it is gone; with the process ID it is unique."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


class Hosts:
    """The hosts of a lab and the switch between them; ``root`` keeps their state for other processes."""

    def __init__(self, root: Path, *, detached: bool) -> None:
        self.root = root
        self.detached = detached
        self._children: dict[str, subprocess.Popen[str]] = {}

    def pid(self, name: str) -> int:
        """Return the ID of the host's first process.

        Raises:
            LabError: the host is not running.
        """
        with contextlib.suppress(OSError, ValueError):
            pid, start = (self.root / "pids" / name).read_text().split()
            if born(int(pid)) == start:
                return int(pid)
        raise LabError(f"host {name} is not running (lab {self.root})")

    def is_up(self, name: str) -> bool:
        """Tell whether the host is running."""
        with contextlib.suppress(LabError):
            return bool(self.pid(name))
        return False

    def start_switch(self) -> None:
        """Start the process that all hosts depend on."""
        # A test run's lab ends with the run, even on SIGKILL; a lab started by hand outlives its command.
        tie = [] if self.detached else ["setpriv", "--pdeathsig", "KILL"]
        self._start("switch", [*tie, *_unshare(), "bash", "-c", _SWITCH_INIT])

    def start(self, name: str, address: str) -> None:
        """Start a host with ``address`` and plug it into the switch."""
        inside = ["nsenter", "-t", str(self.pid("switch")), "-p"]
        self._start(name, [*inside, *_unshare(), "bash", "-c", _HOST_INIT, name, str(self.root)])
        pid = str(self.pid(name))
        # Enter only the network namespace, so that ip still finds the host's process.
        self._switch("ip", "link", "add", f"v-{name}", "type", "veth", "peer", "name", "eth0", "netns", pid)
        self._switch("ip", "link", "set", f"v-{name}", "master", "br0", "up")
        # nodad: nobody else is on this network, so the address can be used at once.
        mask = ["/64", "nodad"] if ":" in address else ["/24"]
        self.run(name, ["ip", "addr", "add", address + mask[0], "dev", "eth0", *mask[1:]])
        self.run(name, ["ip", "link", "set", "eth0", "up"])

    def kill(self, name: str) -> None:
        """Cut the host's power: kill its first process, and with it the kernel kills all others."""
        pid = self.pid(name)
        handle = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            if not poll.poll(20_000):
                raise LabError(f"host {name} (process {pid}) did not end within 20 s of SIGKILL")
        finally:
            os.close(handle)
        if child := self._children.pop(name, None):
            child.wait(20)
        (self.root / "pids" / name).unlink(missing_ok=True)
        if self.is_up("switch"):
            # The kernel removes the cable some time after the host; a host that is switched on again gets a new one.
            with contextlib.suppress(LabError):
                self._switch("ip", "link", "del", f"v-{name}")

    def plug(self, name: str, *, plugged: bool) -> None:
        """Plug the host's network cable in, or unplug it."""
        self._switch("ip", "link", "set", f"v-{name}", "up" if plugged else "down")

    def enter(self, name: str, command: Sequence[str], cwd: Path) -> list[str]:
        """Return the arguments that run ``command`` on a host in the folder ``cwd``."""
        # setpriv: nsenter forks, so killing it would leave the command running.
        enter = [
            "nsenter",
            "-t",
            str(self.pid(name)),
            "-n",
            "-u",
            "-m",
            "-p",
            "--",
            "setpriv",
            "--pdeathsig",
            "KILL",
        ]
        return [*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(cwd), *command]

    def run(self, name: str, command: Sequence[str]) -> None:
        """Run a short command on a host for the lab itself.

        Raises:
            LabError: the command failed.
        """
        _checked(self.enter(name, command, Path("/")), f"{name}: {' '.join(command)}")

    def run_beside(self, command: Sequence[str]) -> None:
        """Start a daemon that serves all hosts, in the switch's process tree."""
        _checked(["nsenter", "-t", str(self.pid("switch")), "-p", "-n", *command], command[0])

    def _switch(self, *command: str) -> None:
        _checked(["nsenter", "-t", str(self.pid("switch")), "-n", *command], " ".join(command))

    def _start(self, name: str, command: Sequence[str]) -> None:
        log = self.root / "log" / f"host.{name}.log"
        with log.open("ab") as errors:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=self.detached,
            )
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], 20)
        pid = child.stdout.readline().strip() if ready else ""
        child.stdout.close()
        if not pid:
            child.kill()
            child.wait(20)
            raise LabError(f"host {name} did not start:\n{tail(log)}")
        (self.root / "pids" / name).write_text(f"{pid} {born(int(pid))}")
        self._children[name] = child


def _unshare() -> list[str]:
    return ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child"]


def _checked(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise LabError(f"{what}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
