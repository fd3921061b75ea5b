"""The launcher of one node: torch's elastic agent, which forwards signals and keeps the worker's exit code.

    python -m qwen_job.node.launcher --nnodes 2 --node_rank 0 --nproc_per_node 8 --master_addr n0 \\
        --master_port 29500 --rdzv_id job -- --config RUN/train.yaml

torchrun turns every failure into exit code 1 and kills the workers 30 seconds after a TERM. Here USR1, TERM
and HUP (ssh disconnected) reach the workers as USR1, and they save at a step boundary. The launcher exits with
the code of the first failed worker (128 + n for signal n), so that a scheduler can tell a retryable failure from
a final one.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from qwen_job import strict_yaml
from qwen_job.errors import EnvironmentFault, QwenJobError, RendezvousFailed, Retryable, StoppedAndSaved, UsageError
from qwen_job.node import attempts
from qwen_job.node.checks import check_start
from qwen_job.node.companion import Companion
from qwen_job.node.keeper import open_memory
from qwen_job.node.messenger import Messenger
from qwen_job.run import ends
from qwen_job.run.ends import MEMORY_ADVICE
from qwen_job.run.lease import RENDEZVOUS
from qwen_job.run.signals import STOP_SIGNAL, TIME_LIMIT, hear, leave_now, watch
from qwen_job.sockets import HOW_TO_NAME, RESOLVE_SECONDS, UnknownName, Waiting, endpoint, free_port, reach
from qwen_job.text import visible_lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this node's workers and return the node's exit code."""
    options = _parse(sys.argv[1:] if arguments is None else list(arguments))
    os.environ.setdefault("QWEN_JOB_STARTED", f"{time.time():.0f}")
    os.environ[RENDEZVOUS] = options.rdzv_id
    if options.time_limit_seconds:
        os.environ[TIME_LIMIT] = f"{options.time_limit_seconds:.0f}"
    os.environ.setdefault("OMP_NUM_THREADS", str(_threads(options.nproc_per_node)))
    folder = _run_folder(options)
    # The first node counts the attempts of a run.
    run = folder if options.max_without_progress and not options.node_rank else None
    if run:
        # The trainer applies the same limit to the attempts that reached training.
        os.environ["QWEN_JOB_MAX_WITHOUT_PROGRESS"] = str(options.max_without_progress)
    relay = _Relay(options.grace_seconds, run)
    messenger = Messenger.of(folder, options.rdzv_id, is_first=not options.node_rank, in_pod=bool(run))
    companion: Companion | None = None
    memory = None
    killed_before = ends.oom_kills()
    print(
        f"qwen-job: node {options.node_rank} of {options.nnodes} on {socket.gethostname()}, "
        f"{options.nproc_per_node} workers, rendezvous {options.master_addr}:{options.master_port}",
        file=sys.stderr,
        flush=True,
    )
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
        _check_master(options)
        code = _run(options, relay)
    except QwenJobError as error:
        print(f"qwen-job: {visible_lines(error)}", file=sys.stderr, flush=True)
        code = error.exit_code
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


class _Relay:
    """Forwards a signal to the workers as USR1; one that arrives before they exist is kept for them.

    After a disconnect, the relay kills workers that have not saved within ``grace_seconds``, because nobody else will.
    Before any worker starts there is nothing to save: the launcher exits at once, even from a rendezvous that waits in
    C. ``run``: the run folder, if this node counts its attempts.
    """

    def __init__(self, grace_seconds: float, run: Path | None = None) -> None:
        self.agent: Any = None
        self.used = False
        self._grace = grace_seconds
        self._run = run
        self._early = False
        self._waiting = True
        self._deciding = threading.Lock()
        hear(self._forward)
        watch(self._leave)

    def hold(self) -> None:
        """Block USR1 in this process and in new workers, where it would kill one that has no handler yet."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {STOP_SIGNAL})

    def report(self, waiting: Waiting, what: str) -> None:
        """Report ``what`` this node waits for, every half minute until workers are started."""

        def loop() -> None:
            while self._waiting and waiting.left > 0:
                waiting.report(what)
                time.sleep(1)

        threading.Thread(target=loop, name="waiting", daemon=True).start()

    def starting(self) -> None:
        """Note that from now on there are workers to forward signals to."""
        with self._deciding:
            self._waiting = False

    def _leave(self, number: int) -> None:
        """Exit, from the watching thread, if no worker has been started."""
        with self._deciding:
            if not self._waiting:
                return
            code = StoppedAndSaved.exit_code
            name = signal.Signals(number).name
            print(f"qwen-job: {name} before training started: nothing to save", file=sys.stderr, flush=True)
            if self._run:
                attempts.end(self._run, code, signalled=True)
            leave_now(code)

    def attach(self, agent: Any) -> None:
        """Take the agent, after its workers have started."""
        self.agent = agent
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {STOP_SIGNAL})
        if self._early and self._pids():
            self._early = False
            self._send(STOP_SIGNAL)

    def retire(self) -> None:
        """Ignore signals from now on: Python drops handlers as it exits, and a late one would replace the exit code."""
        hear(signal.SIG_IGN)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        self.used = True
        if not self._pids():
            self._early = True
        self._send(STOP_SIGNAL)
        if number == signal.SIGHUP:
            timer = threading.Timer(self._grace, self._send, [signal.SIGKILL])
            timer.daemon = True
            timer.start()

    def _send(self, number: int) -> None:
        for pid in self._pids():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _pids(self) -> list[int]:
        context = getattr(self.agent, "_pcontext", None)
        return list(context.pids().values()) if context is not None else []


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


def _check_master(options: argparse.Namespace) -> None:
    """Wait for node 0's port before torch does: torch's error gives no reason."""
    if options.node_rank == 0:
        return
    # On Kubernetes, a name resolves only once its pod exists.
    resolve = options.rdzv_timeout if "KUBERNETES_SERVICE_HOST" in os.environ else RESOLVE_SECONDS
    waiting = Waiting(options.rdzv_timeout)
    try:
        reach(options.master_addr, options.master_port, waiting, pause=0.5, resolve_seconds=resolve).close()
    except UnknownName as error:
        raise EnvironmentFault(f"node {options.node_rank} ({socket.gethostname()}): {error}; {HOW_TO_NAME}") from None
    except OSError as error:
        raise RendezvousFailed(
            f"node {options.node_rank} ({socket.gethostname()}) could not reach node 0 at "
            f"{endpoint(options.master_addr, options.master_port)} within {options.rdzv_timeout:.0f} s ({error}); "
            "check that node 0 was started, that --master_addr is its address as seen from this node, and that the "
            "port is open"
        ) from None


def _run(options: argparse.Namespace, relay: _Relay) -> int:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The agent would kill the workers on TERM and HUP; the relay lets them save instead.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGINT,SIGQUIT"
    os.environ["QWEN_JOB_RENDEZVOUS_SECONDS"] = str(options.rdzv_timeout)
    config = LaunchConfig(
        min_nodes=options.nnodes,
        max_nodes=options.nnodes,
        nproc_per_node=options.nproc_per_node,
        run_id=options.rdzv_id,
        rdzv_backend="static",
        rdzv_endpoint=endpoint(options.master_addr, options.master_port),
        rdzv_configs={"rank": options.node_rank, "timeout": int(options.rdzv_timeout)},
        max_restarts=0,
        monitor_interval=0.1,
    )
    if hasattr(config, "signals_to_handle"):
        config.signals_to_handle = "SIGINT,SIGQUIT"
    _watch_agent(relay)
    _quiet_agent()
    relay.hold()
    if options.nnodes > 1:
        where = endpoint(options.master_addr, options.master_port)
        relay.report(Waiting(options.rdzv_timeout), f"all {options.nnodes} nodes at {where}")
    try:
        elastic_launch(config, sys.executable)("-u", "-m", "qwen_job.train", *options.command)
    except ChildFailedError as error:
        _name_killed(list(error.failures.values()))
        return exit_code([(failure.timestamp, failure.exitcode) for failure in error.failures.values()])
    except Exception as error:
        if "timed out" in str(error).lower() or "timeout" in str(error).lower():
            raise RendezvousFailed(_not_all_met(options, error)) from None
        raise
    return 0


def _watch_agent(relay: _Relay) -> None:
    """Give the relay the agent that ``elastic_launch`` builds, each time the agent monitors its workers."""
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    monitor = LocalElasticAgent._monitor_workers

    def watched(agent: Any, group: Any) -> Any:
        relay.attach(agent)
        return monitor(agent, group)

    start = LocalElasticAgent._start_workers

    def started(agent: Any, group: Any) -> Any:
        relay.starting()
        return start(agent, group)

    LocalElasticAgent._monitor_workers = watched  # type: ignore[method-assign]
    LocalElasticAgent._start_workers = started  # type: ignore[method-assign]


def _quiet_agent() -> None:
    """Silence the agent's logs about workers that end: the workers or :func:`_name_killed` report the reason.

    Set LOGLEVEL, torch's own variable, to see them.
    """
    if "LOGLEVEL" in os.environ:
        return
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch.distributed.elastic") and isinstance(logger, logging.Logger):
            logger.setLevel(logging.CRITICAL)


def _name_killed(failures: Sequence[Any]) -> None:
    """Report the workers that were killed by a signal, except those that the agent killed.

    The agent stops the remaining workers when one has failed, and finally kills them.
    """
    reasoned = any(failure.exitcode > 0 and failure.exitcode != Retryable.exit_code for failure in failures)
    for failure in failures:
        if reasoned and failure.exitcode == -signal.SIGKILL:
            continue
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            number = -failure.exitcode
            name = signal.Signals(number).name if number in iter(signal.Signals) else f"signal {number}"
            hint = ", often by the kernel when host memory is full" if name == "SIGKILL" else ""
            print(
                f"qwen-job: a worker on {socket.gethostname()} (local rank {failure.local_rank}, process "
                f"{failure.pid}) was killed by {name}{hint}",
                file=sys.stderr,
                flush=True,
            )


def exit_code(failures: Sequence[tuple[float, int]]) -> int:
    """Return the code of the rank that failed first, from (unix time, code as in subprocess).

    Ranks that only lost a peer, and those that the agent then stopped, do not show the cause.
    """
    collateral = (Retryable.exit_code, -signal.SIGTERM, -signal.SIGABRT)
    # Times are whole seconds; within one second, a rank with an exit code goes before one that was killed.
    code = min((code in collateral, when, code < 0, code) for when, code in failures)[-1]
    return 128 - code if code < 0 else code


def _not_all_met(options: argparse.Namespace, error: Exception) -> str:
    return (
        f"the {options.nnodes} nodes did not connect at {options.master_addr}:{options.master_port} within "
        f"{options.rdzv_timeout:.0f} s ({' '.join(str(error).split())[:160]}); check that all nodes were started "
        "and that each has its own --node_rank"
    )


def _threads(workers: int) -> int:
    return max(1, (os.cpu_count() or 1) // max(1, workers) // 2)


if __name__ == "__main__":
    sys.exit(main())
