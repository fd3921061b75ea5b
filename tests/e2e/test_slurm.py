"""What a user does on a Slurm cluster: ``qwen-job render job.yaml --target slurm | sbatch``, on two real hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.steps import DEMO, SHORT, check_finished, check_model_loads, environment
from tests.slurmlab import Lab

pytestmark = [pytest.mark.slurm, pytest.mark.train, pytest.mark.slow]


@pytest.fixture(scope="module")
def finished(slurm: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, Path]:
    """The demo, rendered for two nodes with two processes each, piped to sbatch, and completed: job, run, output."""
    folder = tmp_path_factory.mktemp("slurm")
    run = folder / "run"
    sets = f"--set cluster.nodes=2 --set cluster.gpus_per_node=2 --set output={run} {' '.join(SHORT)}"
    line = f"set -o pipefail; qwen-job render {DEMO} --target slurm {sets} | sbatch --parsable"
    job = int(slurm.on("ctl", line, cwd=folder, env=environment()).stdout)
    slurm.wait_job(job, "COMPLETED", timeout=420)
    return job, run, folder / f"demo-{job}.out"


def test_four_ranks_on_two_hosts_train(slurm: Lab, finished: tuple[int, Path, Path]) -> None:
    job, run, output = finished
    check_finished(run, world_size=4)
    said = output.read_text()
    assert "node 0 of 2 on node1, 2 workers" in said
    assert "node 1 of 2 on node2, 2 workers" in said
    assert slurm.job(job)["NodeList"] == "node[1-2]"


def test_the_trained_model_loads(finished: tuple[int, Path, Path]) -> None:
    check_model_loads(finished[1])


def test_a_complete_run_is_left_alone_and_its_output_goes_on(slurm: Lab, finished: tuple[int, Path, Path]) -> None:
    job, run, output = finished
    before, said = (run / "metrics.jsonl").read_bytes(), output.read_text()
    slurm.on("ctl", ["scontrol", "requeue", str(job)])
    slurm.wait(lambda: "is complete" in output.read_text(), 60, "the requeued job sees done.json", job=job)
    slurm.wait_job(job, "COMPLETED", timeout=30)
    assert output.read_text().startswith(said)
    assert (run / "metrics.jsonl").read_bytes() == before
