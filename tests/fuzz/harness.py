"""The rule of the fuzz suite, and the process that tries cases under it.

The rule: a case comes out right, or with a documented exit code and one clear error that names the place; never with a
traceback, an "internal error" or a raw control sequence; within 10 s of processor time and 1 GiB of memory.

- ``Box``: a worker process; ``command(...)`` runs a command of the CLI in it, ``call(...)`` any function
- ``fault(outcome)``: what is wrong with an outcome, None where nothing is
- ``judge(outcome, case)``: the same as an assertion
- ``fuzz(examples)``: hypothesis settings; ``FUZZ_TIMES=20`` (``make fuzz``) tries twenty times as many, at random,
  and ``FUZZ_TIMES=0.2`` (``make check``) a fifth
- ``amount(count)``: the same for plain generators

Cases run one after the other in one process, which is what makes thousands of them quick. It is started again after one
that killed it, and after every ``LIFE`` cases.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hypothesis import HealthCheck, settings

from qwen_job.errors import QwenJobError, table

CPU_SECONDS = 10
MEMORY = 2**30
PATIENCE = 120.0
LIFE = 1_000
TIMES = float(os.environ.get("FUZZ_TIMES", "1"))
REPOSITORY = Path(__file__).resolve().parents[2]
# 130 and 141: interrupted, and the reader went away; 1 is a bug by definition.
DOCUMENTED = {code for code, _, _ in table() if code not in (1, 128)} | {130, 141}
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def amount(count: int) -> int:
    """Return how many cases a generator makes: ``count`` in CI, the first fifth with ``make check``, or more."""
    return max(1, round(count * TIMES))


def fuzz(examples: int) -> settings:
    """Return hypothesis settings: the same ``examples`` every time in CI, others and more with ``make fuzz``."""
    return settings(
        max_examples=amount(examples),
        deadline=None,
        derandomize=TIMES <= 1,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


@dataclass(frozen=True)
class Outcome:
    """How a case ended. ``code``: the exit code, minus the signal's number for a killed one; ``value``: of a call."""

    code: int
    stdout: bytes = b""
    stderr: bytes = b""
    cpu_seconds: float = 0.0
    value: Any = None

    @property
    def text(self) -> str:
        """Both streams as text."""
        return (self.stdout + self.stderr).decode("utf-8", "backslashreplace")


def fault(outcome: Outcome, *, places: Sequence[str] = (), script: bool = False) -> str | None:
    """Return what an outcome does that the rule forbids, None for a good one.

    ``places``: an error must name one of them: a file, a field. ``script``: standard output is one, byte for byte.
    """
    text = outcome.text
    if outcome.code < 0:
        return f"killed by {signal.Signals(-outcome.code).name} (SIGXCPU: over {CPU_SECONDS} s of processor time)"
    if outcome.code not in {0, *DOCUMENTED}:
        return f"exit code {outcome.code}"
    if "Traceback (most recent call last)" in text or b"internal error" in outcome.stderr:
        return "a traceback or an internal error"
    if found := _CONTROL.search(outcome.stderr.decode("utf-8", "backslashreplace") if script else text):
        return f"a raw control character: {found[0]!r}"
    if outcome.code and not outcome.stderr.strip():
        return f"exit code {outcome.code} without a word"
    if outcome.code and places and not any(place in text for place in places):
        return f"an error that names none of {list(places)}"
    return None


def judge(outcome: Outcome, case: object = "", *, places: Sequence[str] = (), script: bool = False) -> None:
    """Assert that an outcome keeps the rule; the message shows the case."""
    wrong = fault(outcome, places=places, script=script)
    assert wrong is None, f"{wrong}\ncase: {str(case)[:3000]!r}\nexit code {outcome.code}\n{outcome.text[-3000:]}"


class Box:
    """A worker process for cases; ``with Box() as box:`` or a fixture of a module.

    ``memory``: bytes that the worker may grow by over what it needs to start; None for code that reserves address
    space without using it, such as torch. ``seconds``: processor time for each case.
    """

    def __init__(self, *, memory: int | None = MEMORY, seconds: int = CPU_SECONDS) -> None:
        self._memory, self._seconds = memory, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._tried = 0

    def __enter__(self) -> Box:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def command(
        self,
        *arguments: str,
        stdin: bytes = b"",
        folder: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Run ``qwen-job ARGUMENTS`` in ``folder`` with ``environ`` added to the environment."""
        return self._try(("command", (arguments, stdin, str(folder or ""), dict(environ or {}))))

    def call(self, function: Callable[..., Any], *arguments: Any) -> Outcome:
        """Call a function that can be imported by its name; a QwenJobError is an exit code, its text is on stderr.

        Arguments and result are pickled; a result that cannot be is given as its repr.
        """
        return self._try(("call", (function, arguments)))

    def close(self) -> None:
        """End the worker."""
        if self._process:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream:
                    with contextlib.suppress(OSError):
                        stream.close()
        self._process, self._tried = None, 0

    def _try(self, case: tuple[str, Any]) -> Outcome:
        if self._tried >= LIFE:
            self.close()
        process = self._process or self._start()
        self._tried += 1
        assert process.stdin and process.stdout
        with contextlib.suppress(BrokenPipeError):
            _send(process.stdin, case)
        if not select.select([process.stdout], [], [], PATIENCE)[0]:
            self.close()
            return Outcome(-signal.SIGALRM, stderr=f"no answer within {PATIENCE:.0f} s: it waits for ever".encode())
        answer = _receive(process.stdout)
        if isinstance(answer, Outcome):
            return answer
        code = process.wait()
        self.close()
        return Outcome(code if code < 0 else 1, stderr=f"the worker ended with {code}".encode())

    def _start(self) -> subprocess.Popen[bytes]:
        environ = {**os.environ, "MALLOC_ARENA_MAX": "2", "PYTHONPATH": str(REPOSITORY), "PYTHONFAULTHANDLER": ""}
        environ |= {"QWEN_JOB_OFFLINE": "1"}  # a plan of an unknown model asks no hub
        words = [sys.executable, "-m", "tests.fuzz.harness", str(self._memory or 0), str(self._seconds)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, cwd=REPOSITORY, env=environ)
        return self._process


def _send(stream: IO[bytes], value: object) -> None:
    data = pickle.dumps(value)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    head = stream.read(8)
    return pickle.loads(stream.read(struct.unpack("<Q", head)[0])) if len(head) == 8 else None


def _serve(memory: int, seconds: int) -> None:
    """Be the worker: cases come on standard input, outcomes go where standard output was."""
    cases, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    import qwen_job.cli

    assert qwen_job.cli
    while (case := _receive(cases)) is not None:
        kind, words = case
        with _streams(words[1] if kind == "command" else b"") as files:
            begun = _cpu()
            _limit(memory, int(begun) + seconds + 1)
            code, value = _command(*words) if kind == "command" else _call(*words)
            used = _cpu() - begun
            _unlimit()
            _flush()
            stdout, stderr = (_content(file) for file in files)
        outcome = Outcome(code, stdout, stderr, used, value)
        try:
            _send(answers, outcome)
        except (pickle.PicklingError, TypeError, AttributeError):
            _send(answers, Outcome(code, stdout, stderr, used, repr(value)))


def _command(arguments: Sequence[str], _: bytes, folder: str, environ: Mapping[str, str]) -> tuple[int, None]:
    from qwen_job.cli import main

    kept, at = dict(os.environ), Path.cwd()
    os.environ.update(environ)
    try:
        if folder:
            os.chdir(folder)
        main(list(arguments))
    except SystemExit as end:
        return (end.code if isinstance(end.code, int) else int(bool(end.code))), None
    except BaseException:
        traceback.print_exc()
        return 1, None
    finally:
        os.chdir(at)
        os.environ.clear()
        os.environ.update(kept)
    return 0, None


def _call(function: Callable[..., Any], arguments: Sequence[Any]) -> tuple[int, Any]:
    try:
        return 0, function(*arguments)
    except QwenJobError as error:
        from qwen_job.text import visible_lines

        sys.stderr.write(f"{visible_lines(error)}\n")
        return error.exit_code, None
    except BaseException:
        traceback.print_exc()
        return 1, None


@contextlib.contextmanager
def _streams(stdin: bytes) -> Iterator[list[IO[bytes]]]:
    """Give a case streams of its own, those of the processes that it starts, too."""
    files: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(3)]  # noqa: SIM115 - closed below
    files[0].write(stdin)
    files[0].seek(0)
    for number, file in enumerate(files):
        os.dup2(file.fileno(), number)
    sys.stdin = io.TextIOWrapper(os.fdopen(0, "rb", closefd=False), "utf-8")
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), "utf-8", "surrogateescape")
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), "utf-8", "backslashreplace", line_buffering=True)
    try:
        yield files[1:]
    finally:
        for file in files:
            file.close()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read(2**20)


def _cpu() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _limit(memory: int, seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    if memory:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + memory, resource.RLIM_INFINITY))


def _unlimit() -> None:
    for what in (resource.RLIMIT_CPU, resource.RLIMIT_AS):
        resource.setrlimit(what, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


if __name__ == "__main__":
    # The cases name the functions of this module by its own name, not by __main__.
    from tests.fuzz import harness

    harness._serve(int(sys.argv[1]), int(sys.argv[2]))
