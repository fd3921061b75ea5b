"""One run of a small demo on the lab: submit it, watch it, find its processes, judge its end."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from qwen_job.report.timeline import account, attempts
from qwen_job.run.metrics import read_metrics
from tests.e2e.steps import DEMO, environment
from tests.slurmlab import Lab, LabError
from tests.slurmlab.lab import FINISHED
from tests.support.ranks import ranks

SAVE_STEPS = 5
SMALL = {
    "cluster.nodes": 2,
    "cluster.gpus_per_node": 1,
    "train.max_steps": 40,
    "train.save_steps": SAVE_STEPS,
    "train.per_device_train_batch_size": 2,
    "slurm.python": sys.executable,
}


class Outcome(NamedTuple):
    """What a disturbed run came to; ``lost_steps`` is the most that one restart had to train again."""

    attempts: int
    lost_steps: int
    seconds: float
    effective: str


class Run:
    """A demo of two nodes with one process each, in ``folder``/run, saved every SAVE_STEPS steps."""

    def __init__(self, lab: Lab, folder: Path, **settings: Any) -> None:
        self.lab = lab
        self.folder = folder
        self.path = folder / "run"
        self.job = 0
        self.submitted = 0.0
        values = {**SMALL, "output": self.path, **{name.replace("__", "."): value for name, value in settings.items()}}
        self._sets = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]

    def submit(self) -> Run:
        """Render the job and hand it to sbatch, as a user does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        words = ["qwen-job", "render", str(DEMO), "--target", "slurm", *self._sets]
        script = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=60, check=True).stdout
        words = ["sbatch", "--parsable"]
        self.submitted = time.time()
        self.job = int(self.lab.on("ctl", words, text=script, cwd=self.folder, env=environment()).stdout)
        return self

    @property
    def output(self) -> str:
        """What the job has printed so far."""
        path = self.folder / f"demo-{self.job}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def state(self) -> str:
        """Return the job's state, "" while the controller does not answer."""
        try:
            return self.lab.job(self.job)["JobState"]
        except LabError:
            return ""

    def last_step(self) -> int:
        """Return the highest step in metrics.jsonl."""
        return max((line["step"] for line in read_metrics(self.path) if line["type"] == "step"), default=0)

    def wait_step(self, step: int, timeout: float = 240) -> None:
        """Wait until training has done ``step``."""
        self._wait(lambda: self.last_step() >= step, timeout, f"step {step}")

    def wait_line(self, kind: str, count: int, timeout: float = 240) -> None:
        """Wait until metrics.jsonl has ``count`` lines of a type."""

        def written() -> bool:
            return len([line for line in read_metrics(self.path) if line["type"] == kind]) >= count

        self._wait(written, timeout, f"{count} x {kind}")

    def wait_file(self, pattern: str, timeout: float = 240) -> Path:
        """Wait for a file of the run, without a pause: some live for milliseconds."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for path in self.path.glob(pattern):
                return path
            time.sleep(0.001)
        raise LabError(f"no {pattern} within {timeout:g} s\n{self.output[-3000:]}")

    def wait_end(self, timeout: float = 900) -> str:
        """Wait until the job is over for good, and return its state; one that is being requeued is not over."""
        seen: list[tuple[str, float]] = []

        def over() -> bool:
            state = self.state()
            if not seen or seen[-1][0] != state:
                seen.append((state, time.monotonic()))
            return state in FINISHED and time.monotonic() - seen[-1][1] > (0 if state == "COMPLETED" else 4)

        self._wait(over, timeout, f"job {self.job} is over")
        return seen[-1][0]

    def _wait(self, check: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not check():
            if time.monotonic() > deadline:
                raise LabError(f"{what}: not within {timeout:g} s\n{self.lab.why(self.job)}\n{self.output[-3000:]}")
            time.sleep(0.2)

    def ranks(self) -> list[psutil.Process]:
        """Return the run's training processes, rank 0 first."""
        return ranks(self._started())

    def templates(self) -> list[psutil.Process]:
        """Return the processes that the ranks are forked from, and the ranks' store."""
        mine = self._started()
        return [process for process in mine if process not in ranks(mine)]

    def launchers(self) -> list[psutil.Process]:
        """Return the launchers of the nodes, node 0 first."""
        found = self._find(lambda words: "qwen_job.node.launcher" in words and str(self.path / "train.yaml") in words)
        return sorted(found, key=lambda process: int(process.cmdline()[process.cmdline().index("--node_rank") + 1]))

    def srun(self) -> psutil.Process:
        """Return the srun of the training step, which is the parent of a second one."""
        found = self._find(lambda words: words[:1] == ["srun"] and str(self.path / "launch" / "node.sh") in words)
        return next(process for process in found if process.parent() not in found)

    def _started(self) -> list[psutil.Process]:
        words = ["-m", "qwen_job.train", "--config", str(self.path / "train.yaml")]
        return self._find(lambda own: own[-4:] == words)

    def _find(self, right: Callable[[list[str]], bool]) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if right(process.cmdline()):
                    found.append(process)
        return found

    def wait_output(self, words: str, timeout: float = 240) -> None:
        """Wait until the job has printed something."""
        self._wait(lambda: words in self.output, timeout, words)

    def wait_ranks(self, timeout: float = 240) -> list[psutil.Process]:
        """Return the ranks as soon as there are any, without a pause."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if found := self.ranks():
                return found
        raise LabError(f"no ranks within {timeout:g} s\n{self.output[-3000:]}")

    def kill_rank(self, number: int) -> None:
        """Kill one rank, as the kernel does when memory is short."""
        self.ranks()[number].send_signal(signal.SIGKILL)

    def judge(self, calm: Run, *, intervals: int = 1) -> Outcome:
        """Check what must be true after any fault: complete, same weights, few steps lost, the time accounted for."""
        assert (self.path / "done.json").exists(), self.output[-3000:]
        assert weights(self.path) == weights(calm.path), "the weights are not those of the undisturbed run"
        lines = read_metrics(self.path)
        tries = attempts(lines)
        lost = [before.last_step - after.resumed_from for before, after in pairwise(tries)]
        assert max(lost, default=0) <= intervals * SAVE_STEPS, lost
        for one in tries:
            steps = [line["step"] for line in one.events if line["type"] == "step"]
            assert steps == list(range(one.resumed_from + 1, one.resumed_from + 1 + len(steps)))
        seconds = account(tries)
        wall = tries[-1].end - tries[0].begin
        assert abs(sum(seconds.values()) - wall) < 1e-3
        return Outcome(len(tries), max(lost, default=0), wall, self.effective())

    def effective(self) -> str:
        """Return the share of effective training time as ``qwen-job report`` prints it."""
        words = ["qwen-job", "report", str(self.path)]
        said = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=60, check=True).stderr
        found = re.search(r"Effective training time: (\S+)", said)
        assert found, said
        return found[1]


def weights(run: Path) -> bytes:
    """Return the final weights, byte by byte."""
    return (run / "model" / "model.safetensors").read_bytes()
