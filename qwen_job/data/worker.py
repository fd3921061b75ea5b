"""Worker processes of ``data prepare``: they get text through pipes and write the token files themselves.

One process loads the tokenizer and forks the workers, which share its memory; each has its own pipes.

    setup    on the first process's stdin, a line of JSON {spec, tokenizer, folder, pipes: [[in, out], ...]}
    in       for each chunk a line of JSON and its raw bytes
    out      a line of JSON for each chunk: {"counts": ...} or {"error": ..., "kind": name of the class}
    deaths   on the first process's stdout, a line of JSON [worker, exit code] for each that failed

Plain processes instead of multiprocessing: nothing of the parent (torch, a launcher's main module) is imported again
or forked with its threads, no token crosses a pipe, and workers whose parent is killed reach the end of their input
and exit.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from qwen_job import errors
from qwen_job.chat.chosen import choose
from qwen_job.data.chunk_encoder import ChunkEncoder, Task
from qwen_job.data.rows import Chunk
from qwen_job.data.writers import load_writer
from qwen_job.errors import EnvironmentFault, QwenJobError
from qwen_job.run.sections import DataSpec, plain


class Workers:
    """``with Workers(setup, count) as workers``: a list of :class:`Worker`; all processes end with the block."""

    def __init__(self, setup: dict[str, Any], count: int) -> None:
        self._setup, self._count = setup, count

    def __enter__(self) -> list[Worker]:
        pipes = [(*os.pipe(), *os.pipe()) for _ in range(self._count)]
        theirs = [(source, sink) for source, _, _, sink in pipes]
        package_home = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package_home, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qwen_job.data.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[end for ends in theirs for end in ends],
            start_new_session=True,  # one signal ends all of them
            env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
        )
        for ends in theirs:
            _close_all(ends)
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stream:
            stream.write(json.dumps(self._setup | {"pipes": theirs}).encode() + b"\n")
        mine = [(to, source) for _, to, source, _ in pipes]
        self._workers = [Worker(number, *ends, self._process) for number, ends in enumerate(mine)]
        return self._workers

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        for worker in self._workers:
            worker.close()  # it sees the end of its input
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()


class Worker:
    """The parent's end of one worker process."""

    def __init__(self, number: int, to: int, source: int, first: subprocess.Popen[bytes]) -> None:
        self._number, self._first = number, first
        self._to, self._from = os.fdopen(to, "wb"), os.fdopen(source, "rb")

    def encode(self, task: Task) -> dict[str, int]:
        """Encode one chunk; raises what the worker raised, or EnvironmentFault if it died."""
        chunk = task.chunk
        header = [task.number, task.split, task.file, chunk.first_row, chunk.kind, len(chunk.payload)]
        try:
            self._to.write(json.dumps(header).encode() + b"\n" + chunk.payload)
            self._to.flush()
        except BrokenPipeError:
            self._died()
        line = self._from.readline()
        if not line:
            self._died()
        answer = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["kind"], QwenJobError)(answer["error"])
        counts: dict[str, int] = answer["counts"]
        return counts

    def close(self) -> None:
        """Close the pipes."""
        for pipe in (self._to, self._from):
            with contextlib.suppress(OSError):
                pipe.close()

    def _died(self) -> None:
        assert self._first.stdout
        deaths = dict(json.loads(line) for line in self._first.stdout)
        code = deaths.get(self._number) or self._first.wait()
        why = "killed, perhaps by the memory limit: use fewer workers" if code == -9 else "see its output above"
        raise EnvironmentFault(f"a data worker ended with {code} ({why})")


def serve(source: IO[bytes], sink: IO[bytes], encoder: ChunkEncoder | QwenJobError, folder: str) -> None:
    """Run as a worker: encode chunks from ``source`` and answer on ``sink`` until the input ends."""
    for line in iter(source.readline, b""):
        number, split, file, first_row, kind, size = json.loads(line)
        task = Task(number, split, file, Chunk(first_row, kind, source.read(size)))
        answer: dict[str, Any]
        try:
            if isinstance(encoder, QwenJobError):
                raise encoder
            answer = {"counts": encoder.encode(task)}
        except OSError as error:
            answer = {"error": f"{folder}: cannot be written: {error.strerror}", "kind": "EnvironmentFault"}
        except QwenJobError as error:
            answer = {"error": str(error), "kind": type(error).__name__}
        sink.write(json.dumps(answer).encode() + b"\n")
        sink.flush()


def make_encoder(setup: dict[str, Any]) -> ChunkEncoder:
    """Build the encoder that ``setup`` (see :func:`make_setup`) describes."""
    spec, tokenizer = DataSpec.model_validate(setup["spec"]), Path(setup["tokenizer"])
    chosen = choose(spec.template, tokenizer, datetime.date.fromisoformat(setup["date"]))
    return ChunkEncoder(spec, load_writer(spec, chosen, tokenizer), Path(setup["folder"]))


def make_setup(spec: DataSpec, tokenizer_dir: Path, folder: Path, date: datetime.date) -> dict[str, Any]:
    """Return what a worker needs to know, as plain JSON; ``date`` is what a chat template takes for today."""
    return {
        "spec": plain(spec),
        "tokenizer": str(tokenizer_dir),
        "folder": str(folder),
        "date": date.isoformat(),
    }


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Look for no cycles meanwhile: encoding makes none, and going through its tuples takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def main(deaths: IO[bytes]) -> None:
    """Run as the first process: load the tokenizer, fork the workers and report which of them failed."""
    setup = json.loads(sys.stdin.buffer.readline())
    encoder: ChunkEncoder | QwenJobError
    try:
        encoder = make_encoder(setup)
    except QwenJobError as error:
        encoder = error
    pipes: list[tuple[int, int]] = setup["pipes"]
    children: dict[int, int] = {}
    for number, (source, sink) in enumerate(pipes):
        pid = os.fork()
        if not pid:
            _close_all([end for ends in pipes[number + 1 :] for end in ends])
            _be_a_worker(source, sink, encoder, setup["folder"])
        children[pid] = number
        _close_all((source, sink))
    while children:
        pid, status = os.wait()
        number, code = children.pop(pid), os.waitstatus_to_exitcode(status)
        if code:
            deaths.write(json.dumps([number, code]).encode() + b"\n")
            deaths.flush()


def _be_a_worker(source: int, sink: int, encoder: ChunkEncoder | QwenJobError, folder: str) -> None:
    try:
        serve(os.fdopen(source, "rb"), os.fdopen(sink, "wb"), encoder, folder)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _close_all(ends: Iterable[int]) -> None:
    for end in ends:
        os.close(end)


if __name__ == "__main__":
    # Printed text must not mix with the protocol on stdout.
    told = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with no_collection():
        main(told)
