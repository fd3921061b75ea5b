"""Two hosts reached over ssh, without a scheduler: torchrun on each node, and DeepSpeed's own launcher over pdsh."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.steps import DEMO, SHORT, check_finished, environment
from tests.slurmlab import Lab

pytestmark = [pytest.mark.slurm, pytest.mark.train, pytest.mark.slow]


@pytest.fixture(scope="module")
def hosts(make_slurm: Callable[..., Lab]) -> Lab:
    """Two hosts with sshd that know nothing of each other's environment."""
    return make_slurm(2, ssh=True)


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "pdsh"])
def test_the_rendered_script_trains_on_both_hosts(hosts: Lab, tmp_path: Path, launcher: str) -> None:
    run, files = tmp_path / "run", tmp_path / "launch files"
    words = ["qwen-job", "render", str(DEMO), "--target", "hostfile", "-o", str(files), *SHORT]
    for assignment in (
        "cluster.nodes=2",
        "cluster.gpus_per_node=1",
        f"output={run}",
        "hostfile.hosts=node[1-2]",
        f"hostfile.launcher={launcher}",
        f"hostfile.python={sys.executable}",
    ):
        words += ["--set", assignment]
    hosts.on("node1", words, env=environment())
    done = hosts.on("node1", [str(files / "launch.sh")], cwd=tmp_path, env=environment(), timeout=420, check=False)
    logs = "".join(f"\n{log}:\n{log.read_text()[-2000:]}" for log in run.glob("logs/*.log"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + logs
    check_finished(run, world_size=2)
