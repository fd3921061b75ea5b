"""What the rendered pods run, run here: the commands and settings of the manifest, with a stand-in for the operator.

The stand-in does what the training-operator does with restartPolicy ExitCode (pkg/controller.v1/common/pod.go): 0 is
the end, 1-127 is the end, and from 128 on the pod is made anew, without any limit.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from qwen_job.job import load_job
from qwen_job.plan import make_plan
from qwen_job.render import render
from qwen_job.resources import resource
from qwen_job.run.metrics import read_metrics
from tests.support.schemas import load
from tests.support.suites import write_suite

pytestmark = [pytest.mark.train, pytest.mark.slow]
PATIENCE = 240


class Cluster:
    """One job's objects, its ConfigMap mounted in ``config``, its volume in ``shared``."""

    def __init__(self, folder: Path, *sets: str) -> None:
        self.run, self.config = folder / "shared" / "run", folder / "config"
        self.config.mkdir()
        volumes = f"kubernetes.volumes=[{{name: shared, mount_path: {folder / 'shared'}, pvc: shared}}]"
        self.data = folder / "shared" / "chats.json"
        self.data.parent.mkdir(exist_ok=True)
        self.data.write_bytes(resource("configs", "data", "demo.json").read_bytes())
        own = [
            volumes, f"output={self.run}", f"data.train={self.data}", f"model.cache_dir={folder / 'shared' / 'cache'}",
            "cluster.gpus_per_node=1", "train.num_train_epochs=3", "train.save_steps=5", "train.global_batch_size=4",
            "kubernetes.prepare=true", "kubernetes.suspend=true",
        ]  # fmt: skip
        plan = make_plan(load_job([resource("configs", "jobs", "demo.yaml")], sets=[*own, *sets]))
        things = load(render(plan, "kubernetes").text)
        self.objects = {thing["kind"]: thing for thing in things}
        (self.preparation,) = [thing for thing in things if thing["metadata"]["name"].endswith("-prepare")]
        for name, text in self.objects["ConfigMap"]["data"].items():
            (self.config / name).write_text(text)
        self.codes: list[int] = []

    def start(self, pod: dict[str, Any]) -> subprocess.Popen[bytes]:
        """Start the pod's container."""
        (container,) = pod["spec"]["containers"]
        words = [word.replace("/etc/qwen-job", str(self.config)) for word in container["command"]]
        assert words[0] == "python3" and "$(" not in " ".join(words)
        variables = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
        return subprocess.Popen([sys.executable, *words[1:]], env={**os.environ, **variables}, start_new_session=True)

    def prepare(self) -> int:
        """Run the Job's pod to its end."""
        return self.start(self.preparation["spec"]["template"]).wait(PATIENCE)

    def train(self, *faults: Callable[[psutil.Process], None]) -> str:
        """Be the operator: make the pod anew while its exit code is worth it; a fault hits each of the first pods."""
        template = self.objects["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
        left = list(faults)
        while len(self.codes) < 12:
            pod = self.start(template)
            if left:
                left.pop(0)(psutil.Process(pod.pid))
            code = pod.wait(PATIENCE)
            self.codes.append(128 - code if code < 0 else code)
            if self.codes[-1] < 128:
                return "Failed" if self.codes[-1] else "Succeeded"
        return "Restarting"

    def steps(self) -> list[int]:
        """Return the steps that were saved."""
        return [line["step"] for line in read_metrics(self.run) if line["type"] == "save"]


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def power_cut(pod: psutil.Process) -> None:
    for process in (*pod.children(recursive=True), pod):
        process.kill()


def test_a_killed_and_a_drained_pod_go_on_from_their_checkpoints(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    assert cluster.prepare() == 0
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shared/*/prepared/*/index.json")}
    assert made, "nothing was prepared"

    def cut_after_a_save(pod: psutil.Process) -> None:
        wait_until(lambda: bool(cluster.steps()))
        power_cut(pod)

    def drain_later(pod: psutil.Process) -> None:
        before = len(cluster.steps())
        wait_until(lambda: len(cluster.steps()) > before)
        pod.send_signal(signal.SIGTERM)

    assert cluster.train(cut_after_a_save, drain_later) == "Succeeded"
    assert cluster.codes == [137, 160, 0]
    starts = [line["resumed_from"] for line in read_metrics(cluster.run) if line["type"] == "start"]
    assert starts[0] is None and 0 < starts[1] < starts[2]
    assert (cluster.run / "done.json").exists() and not (cluster.run / "launch" / "tries.json").exists()
    assert {path: path.stat().st_mtime_ns for path in made} == made, "the training prepared once more"


def test_pods_that_get_nowhere_come_to_an_end(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "retry.max_without_progress=2")
    tries = cluster.run / "launch" / "tries.json"

    def cut_at_once(pod: psutil.Process) -> None:
        count = len(cluster.codes)
        wait_until(lambda: tries.exists() and json.loads(tries.read_text())["fruitless"] == count)
        power_cut(pod)

    assert cluster.train(cut_at_once, cut_at_once) == "Failed"
    assert cluster.codes == [137, 137, 8]


def test_a_suite_without_its_rows_is_final_before_anything_is_fetched(tmp_path: Path) -> None:
    tasks = write_suite(tmp_path / "shared" / "tasks")
    cluster = Cluster(tmp_path, f"evaluate={{suite: {{folder: {tasks}}}}}")
    rows = tasks / "rows.jsonl"
    rows.rename(tasks / "elsewhere")
    assert cluster.prepare() == 4 and not list(tmp_path.glob("shared/*/prepared"))
    (tasks / "elsewhere").rename(rows)
    assert cluster.prepare() == 0 and list(tmp_path.glob("shared/*/prepared"))


def test_wrong_data_is_final_before_a_gpu_is_taken(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.data.write_text('[{"id": 1}]')
    assert cluster.prepare() == 4
