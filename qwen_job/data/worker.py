"""Worker processes of ``data prepare``: text goes in through a pipe, token files are written by the worker
itself.

    in    a line of JSON {spec, tokenizer, folder}; then for each chunk a line of JSON and its raw bytes
    out   a line of JSON for each chunk: {"counts": ...} or {"error": ..., "kind": name of the class}

Plain processes instead of multiprocessing: nothing of the parent (torch, a launcher's main module) is
imported again, no token crosses a pipe, and a worker whose parent is killed sees the end of its input and
leaves.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from qwen_job import errors
from qwen_job.data.chunk_encoder import ChunkEncoder, Task
from qwen_job.data.files import Chunk
from qwen_job.data.spec import DataSpec
from qwen_job.errors import EnvironmentFault, QwenJobError


class Worker:
    """The parent's end of one worker process."""

    def __init__(self, setup: dict[str, Any]) -> None:
        package_home = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package_home, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qwen_job.data.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdin and self._process.stdout
        self._to, self._from = self._process.stdin, self._process.stdout
        self._send(setup)

    def encode(self, task: Task) -> dict[str, int]:
        """Have one chunk encoded; raises what the worker raised, or EnvironmentFault if it died."""
        chunk = task.chunk
        header = [task.number, task.split, task.file, chunk.first_row, chunk.kind, len(chunk.payload)]
        self._send(header, chunk.payload)
        line = self._from.readline()
        if not line:
            self._died()
        answer = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["kind"], QwenJobError)(answer["error"])
        counts: dict[str, int] = answer["counts"]
        return counts

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._to, self._from):
            try:
                pipe.close()
            except OSError:
                continue

    def _send(self, header: object, payload: bytes = b"") -> None:
        try:
            self._to.write(json.dumps(header).encode() + b"\n" + payload)
            self._to.flush()
        except BrokenPipeError:
            self._died()

    def _died(self) -> None:
        code = self._process.wait()
        why = "killed, perhaps by the memory limit: use fewer workers" if code == -9 else "see its words above"
        raise EnvironmentFault(f"a data worker ended with {code} ({why})")


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """Be a worker: answer chunks from ``source`` on ``sink`` until the input ends."""
    setup = json.loads(source.readline())
    encoder: ChunkEncoder | None = None
    for line in iter(source.readline, b""):
        number, split, file, first_row, kind, size = json.loads(line)
        task = Task(number, split, file, Chunk(first_row, kind, source.read(size)))
        answer: dict[str, Any]
        try:
            encoder = encoder or make_encoder(setup)
            answer = {"counts": encoder.encode(task)}
        except OSError as error:
            answer = {
                "error": f"{setup['folder']}: cannot be written: {error.strerror}",
                "kind": "EnvironmentFault",
            }
        except QwenJobError as error:
            answer = {"error": str(error), "kind": type(error).__name__}
        sink.write(json.dumps(answer).encode() + b"\n")
        sink.flush()


def make_encoder(setup: dict[str, Any]) -> ChunkEncoder:
    """Build the encoder that ``setup`` (see :func:`make_setup`) describes."""
    from qwen_job.data.encoder import load_encoder

    spec = DataSpec.from_dict(setup["spec"])
    return ChunkEncoder(spec, load_encoder(Path(setup["tokenizer"])), Path(setup["folder"]))


def make_setup(spec: DataSpec, tokenizer_dir: Path, folder: Path) -> dict[str, Any]:
    """Return what a worker needs to know, as plain JSON."""
    return {"spec": spec.to_dict(), "tokenizer": str(tokenizer_dir), "folder": str(folder)}


if __name__ == "__main__":
    # Rows go out on stdout's own descriptor; whatever else is printed must not mix with them.
    # Nothing here makes cycles, and looking for them in a million tuples costs a third of the time.
    gc.disable()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)
