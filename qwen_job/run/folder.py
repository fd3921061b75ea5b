"""Every file and folder of a run, by name. No other module spells one; a test holds that, also for the templates.

job.yaml train.yaml deepspeed.json    what ran, exactly
checkpoints/step-N/manifest.json      sharded state; without its manifest, a checkpoint does not exist
prepared/                             the packed rows, where no other cache is named
held-out.jsonl                        the rows of data.eval_split, which are not trained on
sources.json                          which version of each data set by name the run trains on
metrics.jsonl heartbeat               a line per step; the time and step last seen
metrics.prom                          the newest figures, for Prometheus
kernels.zip                           compiled kernels, so that a restart compiles nothing
launch/ logs/                         what the launchers of the nodes write
model/                                the trained model
report.html evaluation.json done.json pages and scores; done.json, written last: the run is complete
sweep.json                            in the folder of a sweep: its runs
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

JOB, TRAIN, DEEPSPEED = "job.yaml", "train.yaml", "deepspeed.json"
METRICS, HEARTBEAT, DONE = "metrics.jsonl", "heartbeat", "done.json"
REPORT, EVALUATION, SWEEP, PROMETHEUS = "report.html", "evaluation.json", "sweep.json", "metrics.prom"
CHECKPOINTS, PREPARED, MODEL, KERNELS = "checkpoints", "prepared", "model", "kernels.zip"
SOURCES, HELD_OUT = "sources.json", "held-out.jsonl"
LAUNCH, LOGS = "launch", "logs"
# In a checkpoint.
MANIFEST, IDENTITY, STATE = "manifest.json", "identity.json", "trainer_state.json"
SCHEDULE, SETTINGS = "scheduler.pt", "settings.json"
# In launch/.
LEASE, OWNER, ENDS_AT, ATTEMPTS, TOKEN = "lease", "job", "ends_at", "tries.json", "token"
NOTIFIED, LAST_ATTEMPT, HELD_OUT_OF = "notified.json", "last_attempt", "held_out_of"

_STEP = re.compile(r"step-([0-9]+)")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: ``output`` of its job. Nothing is read or written here."""

    path: Path

    @property
    def train(self) -> Path:
        """The settings of the run, complete."""
        return self.path / TRAIN

    @property
    def job(self) -> Path:
        """The job that the run was rendered from."""
        return self.path / JOB

    @property
    def deepspeed(self) -> Path:
        """DeepSpeed's JSON."""
        return self.path / DEEPSPEED

    @property
    def metrics(self) -> Path:
        """A JSON line per step, evaluation, save and event."""
        return self.path / METRICS

    @property
    def heartbeat(self) -> Path:
        """The state, step and time that the run last reported."""
        return self.path / HEARTBEAT

    @property
    def done(self) -> Path:
        """Written last: the run is complete."""
        return self.path / DONE

    @property
    def report(self) -> Path:
        """The report page."""
        return self.path / REPORT

    @property
    def prometheus(self) -> Path:
        """The figures for Prometheus, where ``monitor.prometheus_file`` names no other file."""
        return self.path / PROMETHEUS

    @property
    def evaluation(self) -> Path:
        """Scores before and after training."""
        return self.path / EVALUATION

    @property
    def sweep(self) -> Path:
        """The runs of a sweep, in the sweep's own folder."""
        return self.path / SWEEP

    @property
    def checkpoints(self) -> Path:
        """The folder of all checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def prepared(self) -> Path:
        """The packed rows, where ``data.cache_dir`` names no other folder."""
        return self.path / PREPARED

    @property
    def sources(self) -> Path:
        """The versions and files of the data that job.yaml names: of hubs and addresses."""
        return self.path / SOURCES

    @property
    def held_out(self) -> Path:
        """The rows of the training data that ``data.eval_split`` holds out."""
        return self.path / HELD_OUT

    @property
    def held_out_of(self) -> Path:
        """The name of the prepared data that the held-out rows belong to."""
        return self.launch / HELD_OUT_OF

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.path / MODEL

    @property
    def kernels(self) -> Path:
        """The archive of compiled kernels."""
        return self.path / KERNELS

    @property
    def logs(self) -> Path:
        """The logs of the nodes."""
        return self.path / LOGS

    @property
    def launch(self) -> Path:
        """What the launchers write."""
        return self.path / LAUNCH

    @property
    def lease(self) -> Path:
        """Who trains in the folder."""
        return self.launch / LEASE

    @property
    def owner(self) -> Path:
        """The job that last started in the folder."""
        return self.launch / OWNER

    @property
    def ends_at(self) -> Path:
        """When the time limit ends the job, in unix seconds."""
        return self.launch / ENDS_AT

    @property
    def attempts(self) -> Path:
        """Attempts in a row without a newer checkpoint."""
        return self.launch / ATTEMPTS

    @property
    def notified(self) -> Path:
        """What the webhooks have heard of the run, and whether an attempt is open."""
        return self.launch / NOTIFIED

    @property
    def last_attempt(self) -> Path:
        """Written by the batch script: whether no attempt follows this one, with and without a newer checkpoint."""
        return self.launch / LAST_ATTEMPT

    @property
    def token(self) -> Path:
        """What proves to a node that it sees the same folder."""
        return self.launch / TOKEN

    def node_end(self, node: int) -> Path:
        """How the launcher of a node ended."""
        return self.launch / f"node-{node}.json"

    def node_ends(self) -> Iterator[Path]:
        """The files of all nodes that wrote one, in the order of their names."""
        yield from sorted(self.launch.glob("node-*.json"))

    def node_log(self, node: int) -> Path:
        """The log of a node."""
        return self.logs / f"node-{node}.log"

    def unhealthy(self, token: str, rank: int) -> Path:
        """The name of a node that the batch script excludes when it requeues the job."""
        return self.launch / f"unhealthy.{token}.{rank}"

    def lost(self, token: str, node: int) -> Path:
        """How the other nodes of an attempt lost this one ("gone", "silent"): a spare may take its place."""
        return self.launch / f"lost.{token}.{node}"


def step_name(step: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"step-{step}"


def deepspeed_tag(step: int) -> str:
    """Return the name of the folder of DeepSpeed's files within a checkpoint."""
    return f"global_step{step}"


def step_of(name: str) -> int | None:
    """Return the step of a checkpoint's folder; None for any other name."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found else None
