"""The rendered sbatch script starts the job in a container, on two hosts: charliecloud, podman and pyxis's options.

The image is a stand-in (tests/support/containers.py), or the one that IMAGE_UNDER_TEST names: `make image-test`.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos.run import Run
from tests.e2e.steps import CHECKOUT, check_model_loads, metrics
from tests.slurmlab import Lab
from tests.slurmlab.spank import missing_pyxis, pyxis
from tests.support import optional
from tests.support.containers import Image, missing_runtimes, own_storage, real, remove, stand_in

pytestmark = [pytest.mark.slurm, pytest.mark.train, pytest.mark.slow]

RUNTIMES = ("charliecloud", "podman", "pyxis")
STEPS = 10
# What runs in place of Python: it writes down how things look in the container where the trainer would start.
PROBE = """#!/bin/bash
case " $* " in *" qwen_job.node.launcher "*) ;; *) {otherwise} ;; esac
{{
  echo "pwd=$PWD"
  echo "memlock=$(ulimit -l)"
  echo "env=$QWEN_JOB_CACHE,$LANG,$CUDA_VISIBLE_DEVICES"
  echo "home=$HOME,$(ls {home} 2>&1 | grep -c secret)"
  echo "shm=$(stat -f -c %T /dev/shm)"
  echo "user=$(id -u)"
  touch {data}/written 2> /dev/null && echo "data=written" || echo "data=read-only"
}} > {folder}/run/seen.$(uname -n)
{then}
"""


@pytest.fixture(scope="module")
def cluster(slurm: Lab) -> Iterator[Lab]:
    """The cluster of the session, whose srun has pyxis's options meanwhile."""
    if problem := missing_runtimes() or missing_pyxis():
        optional.skip("containers", problem)
    with pyxis(slurm) as lab:
        yield lab


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image that every runtime starts, in the form that it takes."""
    folder = tmp_path_factory.mktemp("image")
    if name := os.environ.get("IMAGE_UNDER_TEST"):
        yield real(name, folder)
        return
    made = stand_in(folder)
    yield made
    remove(made)


@pytest.fixture(scope="module", autouse=True)
def home() -> Iterator[Path]:
    """A home folder with a secret in it; not below /tmp, which is every container's as well."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        (Path(folder) / "secret").touch()
        patch.setenv("HOME", folder)
        yield Path(folder)


def contained(lab: Lab, image: Image, folder: Path, runtime: str, *, then: str = "", **settings: Any) -> Run:
    """Return a run of the demo in a container; ``then`` is what the probe does once it has looked around."""
    data, tools = folder / "data", folder / "tools"
    for path in (data, tools):
        path.mkdir(parents=True)
    (data / "demo.json").write_bytes((CHECKOUT / "configs/data/demo.json").read_bytes())
    # Without training nothing but the trainer is waited for.
    otherwise = "exit 0" if then else f'exec {image.python} "$@"'
    then = then or f'exec {image.python} "$@"'
    probe = tools / "python"
    probe.write_text(PROBE.format(home=os.environ["HOME"], data=data, folder=folder, otherwise=otherwise, then=then))
    probe.chmod(0o755)
    container = {
        "runtime": runtime,
        "image": image.for_runtime(runtime),
        "mounts": [*image.mounts, f"{tools}:{tools}:ro"],
    }
    values: dict[str, Any] = {
        "container": json.dumps(container),
        "env": json.dumps({"LANG": "POSIX"}),
        "slurm.python": probe,
        "slurm.setup": json.dumps([f"export CONTAINERS_STORAGE_CONF={own_storage(folder)}"]),
        "data.train": data / "demo.json",
        "train.max_steps": STEPS,
    }
    return Run(lab, folder, **{**values, **settings})


def seen(run: Run, node: str) -> dict[str, str]:
    """Return what the probe saw on a node, by name."""
    return dict(line.split("=", 1) for line in (run.path / f"seen.{node}").read_text().splitlines())


@pytest.fixture(scope="module")
def trained(cluster: Lab, image: Image, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of each runtime, all at once; podman's is told to save and to come back."""
    folder = tmp_path_factory.mktemp("trained")
    runs = {runtime: contained(cluster, image, folder / runtime, runtime).submit() for runtime in RUNTIMES}
    runs["podman"].wait_step(3)
    cluster.on("ctl", ["scancel", "--batch", "--signal=USR1", str(runs["podman"].job)])
    for run in runs.values():
        assert run.wait_end() == "COMPLETED", run.output[-4000:]
    return runs


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_job_trains_in_the_container(trained: dict[str, Run], runtime: str) -> None:
    run = trained[runtime]
    tries = 2 if runtime == "podman" else 1
    assert [start["world_size"] for start in metrics(run.path, "start")] == [2] * tries
    assert [step["step"] for step in metrics(run.path, "step")] == list(range(1, STEPS + 1))
    check_model_loads(run.path)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_container_is_as_the_job_wants_it(cluster: Lab, trained: dict[str, Run], runtime: str) -> None:
    for node in ("node1", "node2"):
        assert seen(trained[runtime], node) == {
            "pwd": "/",
            "memlock": cluster.on(node, "ulimit -H -l").stdout.strip(),
            # The image's own, and the job's over the image's.
            "env": "/tmp/qwen-job,POSIX,",
            "home": "/tmp,0",
            "shm": "tmpfs",
            "user": "0",
            # ch-run knows no read-only mounts.
            "data": "written" if runtime == "charliecloud" else "read-only",
        }


def test_a_signal_reaches_the_trainer_in_the_container(trained: dict[str, Run]) -> None:
    run = trained["podman"]
    assert metrics(run.path, "start")[1]["resumed_from"] == metrics(run.path, "stop")[0]["step"] >= 3
    assert "exit code 160, signal USR1" in run.output


def test_the_exit_code_comes_out_of_the_container(cluster: Lab, image: Image, tmp_path: Path) -> None:
    runs = [contained(cluster, image, tmp_path / name, name, then="exit 77").submit() for name in RUNTIMES]
    for run in runs:
        assert run.wait_end(60) == "FAILED"
        assert cluster.job(run.job)["ExitCode"] == "77:0", run.output


def test_an_image_that_is_not_there_is_said_before_training(cluster: Lab, image: Image, tmp_path: Path) -> None:
    gone = image._replace(folder=tmp_path / "no", squashfs=tmp_path / "no.sqsh", name="localhost/no:1")
    runs = {name: contained(cluster, gone, tmp_path / name, name, then="exit 77").submit() for name in RUNTIMES}
    for runtime, run in runs.items():
        assert run.wait_end(60) == "FAILED"
        assert cluster.job(run.job)["ExitCode"] == "5:0", run.output
        said = [line for line in run.output.splitlines() if "container.image: " in line]
        assert said and all(gone.for_runtime(runtime) in line for line in said), run.output


def test_the_container_of_a_killed_attempt_does_not_outlive_it(cluster: Lab, image: Image, tmp_path: Path) -> None:
    """Podman's containers are no children of the step: Slurm kills the script of a node, and its container lives on."""
    go = tmp_path / "run" / "go"
    second = f"if [ $(uname -n) = node2 ]; then touch {go}.up; exec sleep 987.654; fi"
    then = f"{second}; until [ -e {go} ]; do sleep 0.1; done; exit 77"
    run = contained(cluster, image, tmp_path, "podman", then=then).submit()
    cluster.wait((go.parent / "go.up").exists, 60, "the second node's container runs", job=run.job)
    (sleeping,) = processes("sleep 987.654")
    # It will not see the TERM that Slurm sends when the first node fails, and is killed a moment later.
    (script,) = processes(f"bash {run.path}/launch/node.sh 1 ")
    script.suspend()
    go.touch()
    assert run.wait_end(120) == "FAILED"
    assert cluster.job(run.job)["ExitCode"] == "77:0", run.output
    assert not sleeping.is_running()


def processes(pattern: str) -> list[psutil.Process]:
    """Return the processes whose words begin as ``pattern`` says."""
    found = []
    for process in psutil.process_iter():
        try:
            if re.match(pattern, " ".join(process.cmdline())):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
