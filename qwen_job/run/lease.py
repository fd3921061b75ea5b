"""One writer per run folder, on every target: the process that trains renews ``launch/lease`` every few seconds.

Clocks of two machines are never compared. Another lease is alive if it changes while we watch it, and dead if it does
not, or if its process is known to be gone: an earlier attempt of the same job, or a process of this machine that has
ended. A holder that finds its lease replaced by another stops at once.

The file is one line, overwritten in place, so that others on a network file system see it when they open it:
NONCE COUNTER MACHINE PID:START OWNER
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from qwen_job.errors import UsageError
from qwen_job.run.folder import RunFolder
from qwen_job.run.launched import LAUNCH, restarts

# The job's rendezvous ID; on Kubernetes the job's name, the same for all attempts.
RENDEZVOUS = "QWEN_JOB_RENDEZVOUS_ID"
RENEW_SECONDS = 5.0
# Long enough for a holder on a busy machine or with slow storage.
DEAD_SECONDS = 30.0
_LENGTH = 256


class Entry(NamedTuple):
    """One line of the file; ``owner`` names the job or process for messages."""

    nonce: str
    counter: int
    machine: str
    process: str
    owner: str

    def text(self) -> bytes:
        """Return the line, padded to a fixed length."""
        line = f"{self.nonce} {self.counter} {self.machine} {self.process} {self.owner}"
        return line.encode()[: _LENGTH - 1].ljust(_LENGTH - 1) + b"\n"


def owner_name(environ: Mapping[str, str] = os.environ) -> str:
    """Return the job of this process, the same for all of its attempts; without a job, the process."""
    if job := environ.get("SLURM_JOB_ID"):
        array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
        name = f"Slurm job {array}_{task}" if array and task else f"Slurm job {job}"
        # Two clusters that share a file system may use the same job IDs.
        return f"{name} of {cluster}" if (cluster := environ.get("SLURM_CLUSTER_NAME")) else name
    if "KUBERNETES_SERVICE_HOST" in environ:
        # With host networking, a pod has its node's name.
        return f"job {environ.get(RENDEZVOUS) or '?'} (pod {socket.gethostname()})"
    return f"process {os.getpid()} on {socket.gethostname()}"


class Lease:
    """The right to write into ``run``; ``lost`` is called with the new owner if another process takes it."""

    def __init__(self, run: Path, lost: Callable[[str], None], *, renew: float = RENEW_SECONDS) -> None:
        self._file = RunFolder(run).lease
        self._lost = lost
        self._renew = renew
        self._counter = 0
        # Of two attempts of one launch the launchers have ended the earlier one.
        self._launch = os.environ.get(LAUNCH) or uuid.uuid4().hex
        self._nonce = f"{self._launch}.{restarts()}"
        self._over = threading.Event()

    def take(self, say: Callable[[str], None], *, dead: float = DEAD_SECONDS) -> None:
        """Acquire the lease and keep renewing it.

        Raises:
            UsageError: another job is training in the folder.
            OSError: the folder cannot be written.
        """
        for folder in (self._file.parent.parent, self._file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        while not self._created():
            found = self._first_look()
            if found is not None and self._follows(found):
                self._write()
                break
            if found is not None and _may_live(found):
                self._wait_for_change(found, say, dead)
            # Another process may have taken or released it meanwhile.
            if self._read() == found and self._file.exists():
                self._write()
                self._settle()
                break
        threading.Thread(target=self._keep, name="lease", daemon=True).start()

    def check(self) -> None:
        """Call ``lost``, which should not return, if another process has taken the lease.

        Called before each write, because a process that was stopped for a while continues where it was.
        """
        with contextlib.suppress(OSError):
            found = self._read()
            if found is not None and found.nonce != self._nonce and not self._over.is_set():
                self._lost(found.owner)

    def _follows(self, found: Entry) -> bool:
        """Return whether ``found`` belongs to the attempt that the launcher of this one has restarted in place."""
        launch, _, number = found.nonce.partition(".")
        return launch == self._launch and number.isdecimal() and int(number) < restarts()

    def release(self) -> None:
        """Release the lease, so that others can start at once."""
        self._over.set()
        with contextlib.suppress(OSError):
            found = self._read()
            if found is not None and found.nonce == self._nonce:
                self._file.unlink()

    def _created(self) -> bool:
        try:
            handle = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "wb") as stream:
            stream.write(self._entry().text())
        return True

    def _entry(self) -> Entry:
        return Entry(self._nonce, self._counter, machine(), process(os.getpid()), owner_name())

    def _write(self) -> None:
        self._counter += 1
        with self._file.open("r+b") as stream:
            stream.write(self._entry().text())
            stream.flush()
            os.fsync(stream.fileno())

    def _read(self) -> Entry | None:
        """Return the current entry; None without one, or if it is not valid."""
        try:
            nonce, counter, where, who, owner = self._file.read_text("utf-8", "replace").rstrip().split(" ", 4)
            return Entry(nonce, int(counter), where, who, owner)
        except (FileNotFoundError, ValueError):
            return None

    def _first_look(self) -> Entry | None:
        """Return the current entry, waiting up to a second if the file exists but is still being written."""
        for _ in range(20):
            if (found := self._read()) is not None or not self._file.exists():
                return found
            time.sleep(0.05)
        return None

    def _wait_for_change(self, found: Entry, say: Callable[[str], None], dead: float) -> None:
        say(f"output: {found.owner} trained here before: waiting {dead:.0f} s to see whether it still does")
        deadline = time.monotonic() + dead
        while time.monotonic() < deadline:
            time.sleep(min(0.5, self._renew / 4))
            now = self._read()
            if now is None:
                return
            if now[:2] != found[:2]:
                raise _refused(self._file, now)

    def _settle(self) -> None:
        """Of two processes that took it at the same moment, the one whose line is in the file wins."""
        time.sleep(min(0.5, self._renew / 4))
        found = self._read()
        if found is not None and found.nonce != self._nonce:
            raise _refused(self._file, found)

    def _keep(self) -> None:
        while not self._over.wait(self._renew):
            try:
                found = self._read()
                if found is not None and found.nonce != self._nonce:
                    if not self._over.is_set():
                        self._lost(found.owner)
                    return
                if found is None and not self._created():
                    continue
                self._write()
            except OSError:
                continue  # unreachable storage: the trainer notices by itself


def _refused(file: Path, found: Entry) -> UsageError:
    return UsageError(
        f"output: {found.owner} trains in {file.parent.parent}: wait until it has ended, or choose another output"
    )


def _may_live(found: Entry) -> bool:
    """Return whether the holder may be alive: neither a process that ended nor an earlier attempt of this job.

    On this machine the process decides, since two runs inside one allocation belong to the same job.
    """
    if found.machine == machine():
        number = found.process.partition(":")[0]
        return number.isdecimal() and found.process == process(int(number))
    return found.owner != owner_name()


def machine() -> str:
    """Return an ID of this machine's boot and its PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def process(pid: int) -> str:
    """Return a process's PID and start time, which identify it; only the PID if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return f"{pid}"
    return f"{pid}:{fields[19]}" if fields[0] not in "ZX" else f"{pid}"
