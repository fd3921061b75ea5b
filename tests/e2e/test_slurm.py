"""What a user does on a Slurm cluster: ``qwen-job render job.yaml --target slurm | sbatch``, on two real hosts.

The same run is scored by a second job, which costs 25 s, most of it the import of lm-eval.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.e2e.steps import DEMO, SHORT, check_finished, check_model_loads, check_shared_rows, environment
from tests.slurmlab import Lab
from tests.support.optional import skip
from tests.support.suites import write_suite

pytestmark = [pytest.mark.slurm, pytest.mark.train, pytest.mark.slow]
SUITE = " --set evaluate.suite.folder={}" if find_spec("lm_eval") else ""


@pytest.fixture(scope="module")
def finished(slurm: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, Path]:
    """The demo, rendered for two nodes with two processes each, piped to sbatch, and completed: job, run, output.

    The two of a node share each row. A second job waits for it, which scores the model on two small tasks.
    """
    folder = tmp_path_factory.mktemp("slurm")
    run, tasks = folder / "run", write_suite(folder / "tasks", questions=2)
    sets = f"--set cluster.nodes=2 --set cluster.gpus_per_node=2 --set output={run} {' '.join(SHORT)}"
    sets += " --set train.sequence_parallel_size=2"
    command = f"qwen-job render {DEMO} --target slurm {sets}{SUITE.format(tasks)}"
    line = f"set -o pipefail; {command} | sbatch --parsable"
    job = int(slurm.on("ctl", line, cwd=folder, env=environment()).stdout)
    then = f"{command} -o {folder} && sbatch --dependency=afterok:{job} demo-evaluate.sbatch"
    if SUITE:
        slurm.on("ctl", then, cwd=folder, env=environment())
    slurm.wait_job(job, "COMPLETED", timeout=420)
    return job, run, folder / f"demo-{job}.out"


def test_four_ranks_on_two_hosts_train(slurm: Lab, finished: tuple[int, Path, Path]) -> None:
    job, run, output = finished
    check_finished(run, world_size=4)
    said = output.read_text()
    assert "node 0 of 2 on node1, 2 workers" in said
    assert "node 1 of 2 on node2, 2 workers" in said
    assert slurm.job(job)["NodeList"] == "node[1-2]"


def test_the_ranks_of_a_node_share_rows_and_each_counts_once(finished: tuple[int, Path, Path]) -> None:
    check_shared_rows(finished[1], size=2)


def test_the_trained_model_loads(finished: tuple[int, Path, Path]) -> None:
    check_model_loads(finished[1])


def test_a_second_job_waits_for_the_training_and_scores_its_model(slurm: Lab, finished: tuple[int, Path, Path]) -> None:
    if not SUITE:
        skip("eval", "lm_eval is not installed")
    job, run, _ = finished
    (output,) = slurm.wait(lambda: list(run.parent.glob("demo-evaluate-*.out")), 120, "the second job starts")
    second = int(output.stem.rpartition("-")[2])
    fields = slurm.wait_job(second, "COMPLETED", timeout=420)
    assert fields["StartTime"] >= slurm.job(job)["EndTime"]
    results = json.loads((run / "evaluation.json").read_text())["scores"]["results"]
    assert [(one["task"], one["metric"], one["samples"]) for one in results] == [
        ("pick_answer", "acc", 2), ("say_answer", "exact_match", 2),
    ]  # fmt: skip
    assert all(one["before"] is not None and one["after"] is not None for one in results)
    said = output.read_text()
    assert any(line.split()[:3] == ["pick_answer", "acc", "2"] for line in said.splitlines()), said
    assert "<td>pick_answer</td>" in (run / "report.html").read_text()
    card = (run / "model" / "README.md").read_text()
    assert "model-index:" in card and "pick_answer" in card


def test_a_complete_run_is_left_alone_and_its_output_goes_on(slurm: Lab, finished: tuple[int, Path, Path]) -> None:
    job, run, output = finished
    before, said = (run / "metrics.jsonl").read_bytes(), output.read_text()
    slurm.on("ctl", ["scontrol", "requeue", str(job)])
    slurm.wait(lambda: "is complete" in output.read_text(), 60, "the requeued job sees done.json", job=job)
    slurm.wait_job(job, "COMPLETED", timeout=30)
    assert output.read_text().startswith(said)
    assert (run / "metrics.jsonl").read_bytes() == before
