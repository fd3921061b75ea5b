"""The process from which a node's ranks are forked: it has imported the training stack, and starts nothing else.

A fork is safe while the process has one thread and has not touched a GPU, so it computes nothing: OMP_NUM_THREADS is 1
here and set for each rank after the fork. It takes lines of JSON from the launcher, and writes lines of JSON:

    ready    why it must not fork, "" if it may: then the launcher starts new processes instead
    forked   the process ID of a rank
    ended    the process ID of a rank that has ended, and its code
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qwen_job import strict_yaml
from qwen_job.errors import QwenJobError
from qwen_job.facts.families import FAMILIES
from qwen_job.facts.model_shapes import load_model_shape
from qwen_job.run.launched import CHANNEL, ROLE, STORE, die_with_parent
from qwen_job.run.signals import STOP_SIGNAL
from qwen_job.train.rendezvous import before_torch, quiet_deepspeed

# What a rank imports, and what transformers and torch import only when a model is built or a step is taken.
_MODULES = (
    "qwen_job.train.attempt",
    "qwen_job.train.setup",
    "qwen_job.train.resume",
    "qwen_job.train.export",
    "torch.distributed.tensor",
)
# What most runs train; a folder or model that is not known here, too.
_USUAL = ("qwen2", "qwen3")
_LINE_BYTES = 65536


def serve(arguments: list[str], run: Callable[[list[str]], int]) -> None:
    """Import what ranks need, then fork them as the launcher asks, until it closes the connection.

    ``run`` is what a rank does with ``arguments``; it returns its exit code.
    """
    channel = socket.socket(fileno=int(os.environ.pop(CHANNEL)))
    os.environ.pop(ROLE)
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    os.environ["OMP_NUM_THREADS"] = "1"
    reason = _prepare(arguments)
    os.environ["OMP_NUM_THREADS"] = threads
    gc.collect()
    gc.freeze()
    _write(channel, ready=reason)
    if reason:
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(channel, selectors.EVENT_READ)
    selector.register(reader, selectors.EVENT_READ)
    lines = _Lines(channel)
    while not lines.over:
        for key, _ in selector.select():
            if key.fileobj is channel:
                for request in lines.read():
                    _fork(request, arguments, run, channel, (reader, writer))
            else:
                os.read(reader, _LINE_BYTES)
        _report_ended(channel)


def refuse_to_fork() -> str:
    """Return why this process must not be forked; "" if it may be."""
    torch = sys.modules["torch"]
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    if len(threads) > 1:
        return f"the imports started threads ({', '.join(sorted(threads)[:4])})"
    if torch.cuda.is_initialized() or getattr(torch._C, "_cuda_isInBadFork", lambda: False)():
        return "the imports initialised CUDA"
    if any(_target(descriptor).startswith("/dev/nvidia") for descriptor in Path("/proc/self/fd").iterdir()):
        return "the imports opened a GPU"
    return ""


def _target(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except OSError:
        return ""  # the folder itself, while it was listed


def families_of(settings: dict[str, Any]) -> tuple[str, ...]:
    """Return the families of transformers whose code the run's ranks will need, by train.yaml.

    That of linear attention imports Triton's kernels where they are installed, which looks for a GPU: the ranks do so.
    """
    try:
        architecture = load_model_shape(str(settings["model"]["name"])).architecture
    except (QwenJobError, KeyError, TypeError):
        return _USUAL
    found = {family.text_type: family for family in FAMILIES.values() if architecture in family.classes}
    if any(family.is_hybrid for family in found.values()) and find_spec("fla") is not None:
        return ()
    return tuple(kind.removesuffix("_text") for kind in found) or _USUAL


def _prepare(arguments: list[str]) -> str:
    """Import everything; a reason not to fork is returned, a rank started cold then reports it in full."""
    try:
        settings = strict_yaml.load(Path(arguments[1]))
        device = str(settings["device"])
        before_torch(device, settings.get("torch_compile"))
        quiet_deepspeed(device)
        for name in _MODULES:
            importlib.import_module(name)
        for family in families_of(settings):
            with contextlib.suppress(ImportError):
                importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        return refuse_to_fork()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


class _Lines:
    def __init__(self, channel: socket.socket) -> None:
        self._channel, self._buffer, self.over = channel, b"", False

    def read(self) -> list[dict[str, Any]]:
        data = self._channel.recv(_LINE_BYTES)
        self.over = not data
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]


def _write(channel: socket.socket, **message: Any) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


def _fork(
    request: dict[str, Any],
    arguments: list[str],
    run: Callable[[list[str]], int],
    channel: socket.socket,
    pipe: tuple[int, int],
) -> None:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        _write(channel, forked=pid)
        return
    code = 1
    try:
        os.setsid()
        die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in pipe:
            os.close(end)
        if request["role"] == STORE:
            keep_store(channel)
        channel.close()
        os.environ.update(request["environment"])
        random.seed()
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        code = run(arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _report_ended(channel: socket.socket) -> None:
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None:
            return
        # As in the launcher: the group first, its leader is not reaped yet.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(found.si_pid, signal.SIGKILL)
        _, status = os.waitpid(found.si_pid, 0)
        _write(channel, ended=found.si_pid, code=os.waitstatus_to_exitcode(status))


def keep_store(channel: socket.socket) -> None:
    """Keep the store in which the ranks of one attempt meet, until this process is killed; report its port."""
    from torch._C._distributed_c10d import TCPStore

    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    _write(channel, port=store.port)
    channel.close()
    signal.pthread_sigmask(signal.SIG_BLOCK, {STOP_SIGNAL, signal.SIGTERM, signal.SIGHUP})
    while True:
        signal.pause()
