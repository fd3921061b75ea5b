"""The launcher of one node: starts its workers, forwards signals, restarts in place, and keeps the exit code.

    python -m qwen_job.node.launcher --nnodes 2 --node_rank 0 --nproc_per_node 8 --master_addr n0 \\
        --master_port 29500 --rdzv_id job -- --config RUN/train.yaml

torchrun turns every failure into exit code 1, kills the workers 30 seconds after a TERM, and leaves it to each node to
find out that another one failed. Here USR1, TERM and HUP (ssh disconnected) reach the workers as USR1, and they save at
a step boundary. When a rank is killed, the launchers of all nodes (generations.py) end the others at once and restart
all in place, up to --in_place times without a newer checkpoint. Then, or after a failure that a restart does not cure,
the launcher exits with the code of the first failed worker (128 + n for signal n), so that a scheduler can tell a
retryable failure from a final one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from qwen_job import strict_yaml
from qwen_job.errors import EnvironmentFault, QwenJobError, RendezvousFailed, StoppedAndSaved, UsageError
from qwen_job.node import attempts, generations
from qwen_job.node.checks import check_start
from qwen_job.node.companion import Companion
from qwen_job.node.coordinator import Budget, Coordinator
from qwen_job.node.generations import say
from qwen_job.node.keeper import Memory, open_memory
from qwen_job.node.messenger import Messenger
from qwen_job.node.processes import Cold, Warm
from qwen_job.node.relay import Relay
from qwen_job.run import ends
from qwen_job.run.ends import MEMORY_ADVICE
from qwen_job.run.folder import RunFolder
from qwen_job.run.lease import RENDEZVOUS
from qwen_job.run.manifest import newest_step
from qwen_job.run.signals import TIME_LIMIT
from qwen_job.sockets import HOW_TO_NAME, RESOLVE_SECONDS, UnknownName, Waiting, endpoint, free_port, listen, reach
from qwen_job.text import visible_lines

_PORT_SECONDS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this node's workers and return the node's exit code."""
    options = _parse(sys.argv[1:] if arguments is None else list(arguments))
    os.environ.setdefault("QWEN_JOB_STARTED", f"{time.time():.0f}")
    os.environ[RENDEZVOUS] = options.rdzv_id
    if options.time_limit_seconds:
        os.environ[TIME_LIMIT] = f"{options.time_limit_seconds:.0f}"
    os.environ.setdefault("OMP_NUM_THREADS", str(_threads(options.nproc_per_node)))
    # Its warnings are about names that DNS does not know, and about peers that are gone, with a C++ stack each time.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    folder = _run_folder(options)
    # The first node counts the attempts of a run.
    run = folder if options.max_without_progress and not options.node_rank else None
    if run:
        # The trainer applies the same limit to the attempts that reached training.
        os.environ["QWEN_JOB_MAX_WITHOUT_PROGRESS"] = str(options.max_without_progress)
    relay = Relay(options.grace_seconds, run)
    messenger = Messenger.of(folder, options.rdzv_id, is_first=not options.node_rank, in_pod=bool(run))
    companion: Companion | None = None
    memory: Memory | None = None
    killed_before = ends.oom_kills()
    print(
        f"qwen-job: node {options.node_rank} of {options.nnodes} on {socket.gethostname()}, "
        f"{options.nproc_per_node} workers, rendezvous {options.master_addr}:{options.master_port}",
        file=sys.stderr,
        flush=True,
    )
    # A shell starts its background commands with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if messenger:
            messenger.begin()
        if run:
            attempts.begin(run, options.max_without_progress)
        if folder:
            ends.begin(folder, options.node_rank)
        # Before torch is imported: its own errors about a driver or a GPU come late and name no fix.
        check_start(options.command)
        companion = Companion(folder) if folder and not options.node_rank else None
        memory = open_memory(folder, options.command, options.node_rank)
        code = _run(options, relay, folder, memory, messenger.restart if messenger else lambda _: None)
    except QwenJobError as error:
        print(f"qwen-job: {visible_lines(error)}", file=sys.stderr, flush=True)
        code = error.exit_code
    except KeyboardInterrupt:
        say("interrupted: the newest checkpoint is kept")
        code = 128 + signal.SIGINT
    if memory:
        memory.close(code)
    killed = ends.oom_kills() - killed_before
    if killed:
        print(
            f"qwen-job: the kernel killed {killed} processes on {socket.gethostname()}, out of memory: {MEMORY_ADVICE}",
            file=sys.stderr,
            flush=True,
        )
    if folder:
        ends.end(folder, options.node_rank, code, killed)
    if run:
        attempts.end(run, code, signalled=relay.used)
    relay.retire()
    if companion:
        companion.end()
    if messenger:
        messenger.end(code, signalled=relay.used)
    return code


def _run_folder(options: argparse.Namespace) -> Path | None:
    """Return the run folder; None with the flags of finetune.py, which only the trainer reads."""
    if options.command[:1] != ["--config"]:
        return None
    try:
        return Path(strict_yaml.load(Path(options.command[1]))["output_dir"])
    except (OSError, ValueError, LookupError, TypeError):
        return None  # the trainer reports what is wrong with its settings


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m qwen_job.node.launcher", description=__doc__)
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--node_rank", "--node-rank", type=int, default=0)
    parser.add_argument("--nproc_per_node", "--nproc-per-node", type=int, default=1)
    parser.add_argument("--master_addr", "--master-addr", default="127.0.0.1")
    parser.add_argument("--master_port", "--master-port", type=int, default=0)
    parser.add_argument("--rdzv_id", "--rdzv-id", default="qwen-job")
    parser.add_argument("--rdzv_timeout", "--rdzv-timeout", type=float, default=60.0, help="seconds")
    parser.add_argument(
        "--max_without_progress", type=int, default=0, help="attempts in a row without a newer checkpoint; 0: no limit"
    )
    parser.add_argument(
        "--in_place", type=int, default=0, help="restarts in place in a row without a newer checkpoint; 0: none"
    )
    parser.add_argument(
        "--rejoin", action="store_true", help="wait --rdzv_timeout seconds for the launcher of a lost node"
    )
    parser.add_argument(
        "--time_limit_seconds", "--time-limit-seconds", type=float, help="of this attempt, from its start"
    )
    parser.add_argument("--grace_seconds", "--grace-seconds", type=float, default=120.0, help="time to save after HUP")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- arguments of qwen_job.train")
    options = parser.parse_args(arguments)
    options.command = [word for index, word in enumerate(options.command) if index or word != "--"]
    if options.nnodes > 1 and not options.master_port:
        parser.exit(UsageError.exit_code, "--master_port is required with more than one node\n")
    if not 0 <= options.node_rank < options.nnodes:
        parser.exit(UsageError.exit_code, f"--node_rank must be below --nnodes ({options.nnodes})\n")
    options.master_port = options.master_port or free_port()
    return options


def _meet(options: argparse.Namespace) -> socket.socket:
    """Connect to node 0's coordinator, waiting for it.

    Raises:
        EnvironmentFault: the address of node 0 is unknown here.
        RendezvousFailed: node 0 does not answer in time.
    """
    if options.node_rank == 0:
        return socket.create_connection(("localhost", options.master_port))
    # On Kubernetes, a name resolves only once its pod exists.
    resolve = options.rdzv_timeout if "KUBERNETES_SERVICE_HOST" in os.environ else RESOLVE_SECONDS
    waiting = Waiting(options.rdzv_timeout)
    try:
        return reach(options.master_addr, options.master_port, waiting, pause=0.2, resolve_seconds=resolve)
    except UnknownName as error:
        raise EnvironmentFault(f"node {options.node_rank} ({socket.gethostname()}): {error}; {HOW_TO_NAME}") from None
    except OSError as error:
        raise RendezvousFailed(
            f"node {options.node_rank} ({socket.gethostname()}) could not reach node 0 at "
            f"{endpoint(options.master_addr, options.master_port)} within {options.rdzv_timeout:.0f} s ({error}); "
            "check that node 0 was started, that --master_addr is its address as seen from this node, and that the "
            "port is open"
        ) from None


def _coordinate(
    options: argparse.Namespace, folder: Path | None, memory: Memory | None, restarting: Callable[[str], None]
) -> Coordinator:
    """Start the coordinator of all nodes, on node 0.

    Raises:
        RendezvousFailed: the rendezvous port is in use.
    """
    waiting = Waiting(_PORT_SECONDS)
    while True:
        try:
            listening = listen(options.master_port)
            break
        except OSError as error:
            # The launcher of an attempt before may take a moment to end.
            if waiting.left < 0:
                raise RendezvousFailed(
                    f"node 0 ({socket.gethostname()}) cannot listen on port {options.master_port}: {error.strerror}"
                ) from None
            time.sleep(0.2)

    def newest() -> int:
        return max(newest_step(folder) if folder else -1, memory.newest() if memory else -1)

    budget = Budget(options.in_place, newest)
    rejoin = options.rdzv_timeout if _rejoins(options) else 0.0
    lost = _note_lost(options, folder)
    coordinator = Coordinator(
        listening, options.rdzv_id, options.nnodes, options.rdzv_timeout, budget, say, restarting, lost, rejoin
    )
    coordinator.begin()
    return coordinator


def _note_lost(options: argparse.Namespace, folder: Path | None) -> Callable[[int, str], None]:
    """Return what leaves the number of a lost node in the run folder, for the script that replaces it by a spare."""

    def note(node: int, how: str) -> None:
        # Storage that cannot be written delays the replacement, until the scheduler has noticed by itself.
        with contextlib.suppress(OSError):
            if folder:
                RunFolder(folder).lost(options.rdzv_id, node).write_text(f"{how}\n")

    return note


def _run(
    options: argparse.Namespace,
    relay: Relay,
    folder: Path | None,
    memory: Memory | None,
    restarting: Callable[[str], None],
) -> int:
    os.environ["QWEN_JOB_RENDEZVOUS_SECONDS"] = str(options.rdzv_timeout)
    starter = Cold(options.command) if folder is None else Warm(options.command)
    coordinator = _coordinate(options, folder, memory, restarting) if options.node_rank == 0 else None
    place = generations.Place(options.node_rank, options.nnodes, options.nproc_per_node, options.master_addr)
    try:
        while True:
            connection = generations.Connection(_meet(options), options.rdzv_id, place)
            try:
                check, lost = (lambda: check_start(options.command)), _note_lost(options, folder)
                attempts_here = generations.Generations(place, connection, starter, relay, check, say, lost)
                code = attempts_here.run(rejoin=_rejoins(options))
            finally:
                connection.close()
            if code is not None:
                return code
            relay.waiting()
            if relay.used:
                return StoppedAndSaved.exit_code
            say(f"waiting up to {options.rdzv_timeout:.0f} s for node 0 to come back")
    finally:
        if coordinator is not None:
            coordinator.finish()


def _rejoins(options: argparse.Namespace) -> bool:
    """Return whether nodes wait for one that is lost; it counts as a restart in place."""
    return bool(options.rejoin and options.in_place and options.nnodes > 1)


def _threads(workers: int) -> int:
    return max(1, (os.cpu_count() or 1) // max(1, workers) // 2)


if __name__ == "__main__":
    sys.exit(main())
