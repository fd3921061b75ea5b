"""The Slurm cluster: start it, use it, break it, shut it down."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

from tests.slurmlab import config
from tests.slurmlab.config import CONTROLLER, Shape
from tests.slurmlab.hosts import Hosts, LabError, tail, wait_for

T = TypeVar("T")
PREFIX = "qwen-job-slurm-"
CHECKOUT = Path(__file__).resolve().parents[2]
# A Unix socket's path has at most 108 characters, and Slurm appends about 40 to this folder.
LONGEST_ROOT = 60
FINISHED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"}
FINISHED |= {"NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}


def missing(*, ssh: bool = False) -> str:
    """Return what this machine lacks for a lab as a message, or "" if nothing."""
    tools = ["slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare", "setpriv"]
    lacking = [tool for tool in tools + ["sshd"] * ssh if not shutil.which(tool, path=_path())]
    if os.geteuid() != 0:
        return "the Slurm lab needs root, for namespaces and device files"
    packages = "slurm-wlm munge iproute2" + " openssh-server" * ssh
    return f"the Slurm lab lacks {', '.join(lacking)}: apt-get install {packages}" if lacking else ""


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


class Lab:
    """A Slurm cluster of ``nodes`` hosts (``node1`` ...) and ``ctl``, which is controller and login node.

    All hosts see the machine's files, so every folder is shared storage, except /tmp, /run and /dev/shm,
    which each host has for itself; of /tmp the checkout and the folders in ``shared`` stay visible everywhere.

    A lab ends with the process that made it, unless ``detached``. ``root`` is its folder (a new one).
    """

    def __init__(
        self,
        nodes: int = 2,
        *,
        ssh: bool = False,
        gpu_type: str = "h100",
        extra_conf: str = "",
        nameless: bool = False,
        cred_expire: int = 5,
        shared: Sequence[Path] = (),
        root: Path | None = None,
        detached: bool = False,
    ) -> None:
        if problem := missing(ssh=ssh):
            raise LabError(problem)
        _sweep()
        root = root or Path(tempfile.mkdtemp(prefix=PREFIX))
        if len(str(root)) > LONGEST_ROOT:
            raise LabError(
                f"{root}: longer than {LONGEST_ROOT} characters, too long for Slurm's sockets: shorten TMPDIR"
            )
        self.ssh = ssh
        self.shared = [CHECKOUT, *shared]
        self._open(root, Shape(nodes, gpu_type, extra_conf, nameless, cred_expire), detached=detached)

    def _open(self, root: Path, shape: Shape, *, detached: bool) -> None:
        self.root = root
        self.shape = shape
        self.hosts = Hosts(root, detached=detached)

    @classmethod
    def attach(cls, root: Path) -> Lab:
        """Return the running lab whose folder is ``root``."""
        lab = cls.__new__(cls)
        try:
            state = json.loads((root / "lab.json").read_text())
        except OSError as error:
            raise LabError(f"{root}: there is no lab here; start one first") from error
        lab.ssh = state.pop("ssh")
        lab.shared = []
        lab._open(root, Shape(**state), detached=True)
        return lab

    def __enter__(self) -> Lab:
        return self.up()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @property
    def nodes(self) -> list[str]:
        """Return the names of the compute nodes."""
        return self.shape.names

    def up(self) -> Lab:
        """Start the cluster and wait until every node is idle."""
        if not self.hosts.detached:
            atexit.register(self.down)
        try:
            config.write(self.root, self.shape, shared=list(self.shared), ssh=self.ssh)
            # Other users on the hosts must reach munge's socket and slurm.conf.
            self.root.chmod(0o711)
            self.hosts.start_switch()
            (self.root / "lab.json").write_text(json.dumps({**asdict(self.shape), "ssh": self.ssh}))
            self._start_munge()
            self.hosts.start(CONTROLLER, self.shape.address(CONTROLLER))
            self.start_controller()
            for node in self.nodes:
                self._start_node(node)
            self.wait_nodes("idle", timeout=30)
        except BaseException:
            self.down()
            raise
        return self

    def down(self) -> None:
        """End all processes of the lab and remove its folder; does nothing if it is already down."""
        atexit.unregister(self.down)
        if self.hosts.is_up("switch"):
            self.hosts.kill("switch")
        shutil.rmtree(self.root, ignore_errors=True)

    def crash(self, node: str) -> None:
        """Cut a node's power: from one moment to the next it sends nothing, not even the end of its connections."""
        self.cut(node)
        self.hosts.kill(node)

    def boot(self, node: str) -> None:
        """Switch a crashed node on again and wait until Slurm has it back."""
        before = self._slurmd_started(node)
        # Slurm records start times in whole seconds, so two starts must be a second apart.
        time.sleep(1)
        self._start_node(node)
        self.wait(lambda: self._slurmd_started(node) != before, 30, f"{node} registers")
        self.wait_nodes("up", timeout=30, nodes=[node])

    def cut(self, host: str) -> None:
        """Unplug a host's network cable."""
        self.hosts.plug(host, plugged=False)

    def restore(self, host: str) -> None:
        """Plug a host's network cable back in."""
        self.hosts.plug(host, plugged=True)

    def start_controller(self) -> None:
        """Start or restart slurmctld and wait until it answers."""
        self.hosts.run(CONTROLLER, ["slurmctld"])
        self.wait(lambda: self._answers("scontrol", "ping"), 15, "slurmctld answers")

    def stop_controller(self) -> None:
        """Kill slurmctld, as a crash would."""
        pid = (self.root / "pids/slurmctld.daemon").read_text().strip()
        self.hosts.run(CONTROLLER, ["kill", "-9", pid])

    def popen(
        self,
        host: str,
        command: Sequence[str] | str,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[str] = subprocess.DEVNULL,
        stdout: int | IO[str] = subprocess.PIPE,
        stderr: int | IO[str] = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        """Start a command on a host, in this environment plus ``env``; a string is run by bash."""
        words = ["bash", "-c", command] if isinstance(command, str) else list(command)
        inside = self.hosts.enter(host, words, cwd or Path.cwd())
        full = {**os.environ, "PATH": _path(), **(env or {})}
        return subprocess.Popen(inside, env=full, stdin=stdin, stdout=stdout, stderr=stderr, text=True)

    def on(
        self,
        host: str,
        command: Sequence[str] | str,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        text: str | None = None,
        timeout: float = 60,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host, with ``text`` as its standard input, and return its output.

        Raises:
            LabError: it takes more than ``timeout`` seconds or, with ``check``, fails.
        """
        stdin = subprocess.DEVNULL if text is None else subprocess.PIPE
        with self.popen(host, command, cwd=cwd, env=env, stdin=stdin) as process:
            try:
                stdout, stderr = process.communicate(text, timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise LabError(f"{host}: {command}: not done within {timeout:g} s\n{self.why()}") from None
            except BaseException:
                process.kill()
                raise
        if check and process.returncode:
            raise LabError(f"{host}: {command}: exit {process.returncode}\n{stdout[-2000:]}{stderr[-4000:]}")
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def submit(self, script: str, *options: str, cwd: Path | None = None) -> int:
        """Submit a batch script on the login node and return the job ID."""
        answer = self.on(CONTROLLER, ["sbatch", "--parsable", *options], text=script, cwd=cwd).stdout
        return int(answer.strip().split(";")[0])

    def job(self, number: int) -> dict[str, str]:
        """Return the fields of ``scontrol show job``."""
        line = self.on(CONTROLLER, ["scontrol", "show", "job", "-o", str(number)]).stdout
        return dict(re.findall(r"(\S+?)=(\S*)", line))

    def wait_job(self, number: int, state: str, timeout: float) -> dict[str, str]:
        """Wait until a job is in ``state`` and return its fields.

        Raises:
            LabError: the job ended in another state, or the time is up.
        """

        def reached() -> dict[str, str] | None:
            job = self.job(number)
            if job["JobState"] != state and job["JobState"] in FINISHED:
                raise LabError(f"job {number} is {job['JobState']}, not {state}\n{self.why(number)}")
            return job if job["JobState"] == state else None

        return self.wait(reached, timeout, f"job {number} is {state}", job=number) or {}

    def wait_nodes(self, state: str, timeout: float, nodes: Sequence[str] | None = None) -> None:
        """Wait until sinfo lists the nodes (default: all) in ``state``; "up" is any in which jobs can run."""
        wanted = set(nodes or self.nodes)
        states = {"up": {"idle", "mixed", "allocated"}}.get(state, {state})

        def all_there() -> bool:
            return {name for name, now in self.node_states().items() if now in states} >= wanted

        self.wait(all_there, timeout, f"{', '.join(sorted(wanted))} {state}")

    def node_states(self) -> dict[str, str]:
        """Return every node's state, in sinfo's long form without flags."""
        done = self.on(CONTROLLER, ["sinfo", "-hN", "-p", "main", "-o", "%N %T"], check=False)
        return {name: state.rstrip("*~#!%$@^-") for name, state in map(str.split, done.stdout.splitlines())}

    def wait(self, check: Callable[[], T], timeout: float, what: str, job: int | None = None) -> T:
        """Call ``check`` until its result is true and return it.

        Raises:
            LabError: the time is up; the message ends with what ``why`` finds.
        """
        return wait_for(check, timeout, what, lambda: self.why(job))

    def why(self, job: int | None = None) -> str:
        """Return what may explain a failure: the queue, the nodes, the job's output, the controller's log."""
        parts = [tail(self.root / "log/slurmctld.log", 25)]
        with contextlib.suppress(LabError, subprocess.SubprocessError):
            for line in ("squeue -l", "sinfo -Nl", f"scontrol show job {job}" if job else "true"):
                shown = subprocess.run(
                    self.hosts.enter(CONTROLLER, ["timeout", "5", *line.split()], Path("/")),
                    env={**os.environ, "PATH": _path()},
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=10,
                    check=False,
                )
                parts.append(shown.stdout.strip() + shown.stderr.strip())
                if output := re.search(r"StdOut=(\S+)", shown.stdout):
                    parts.append(f"--- {output[1]}\n{tail(Path(output[1]), 40)}")
        return "\n".join(parts)

    def _answers(self, *command: str) -> bool:
        done = self.on(CONTROLLER, list(command), check=False)
        return done.returncode == 0 and "is UP" in done.stdout

    def _slurmd_started(self, node: str) -> str:
        shown = self.on(CONTROLLER, ["scontrol", "show", "node", "-o", node]).stdout
        started = re.search(r"SlurmdStartTime=(\S+)", shown)
        return started[1] if started else ""

    def _start_munge(self) -> None:
        munge = self.root / "munge"
        files = {
            "key-file": "key",
            "socket": "socket",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        self.hosts.run_beside(["munged", "--force", *(f"--{key}={munge / name}" for key, name in files.items())])
        wait_for((munge / "socket").exists, 10, "munged listens", lambda: tail(munge / "log"))

    def _start_node(self, node: str) -> None:
        self.hosts.start(node, self.shape.address(node))
        if self.ssh:
            self.hosts.run(node, ["/usr/sbin/sshd", "-f", str(self.root / "etc/sshd_config")])
        self.hosts.run(node, ["slurmd"])


def _sweep() -> None:
    """Remove the folders left by labs of killed test runs, whose processes ended with those runs."""
    for state in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/lab.json"):
        if not Hosts(state.parent, detached=True).is_up("switch"):
            shutil.rmtree(state.parent, ignore_errors=True)
