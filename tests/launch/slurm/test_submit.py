"""What is passed to sbatch and read from squeue, with stand-ins for both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from qwen_job.cli import cli
from qwen_job.errors import ClusterRefused, EnvironmentFault, JobError, UsageError
from qwen_job.launch.find import find, find_live, find_one
from qwen_job.launch.index import remember
from tests.jobs import PINNED
from tests.support.slurm_queue import Queue, stand_in


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    return stand_in(tmp_path, monkeypatch)


def array_task(array: int, task: int, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "job_id": array + task + 1, "array_job_id": array, "array_task_id": task, "array_task_string": "",
        "name": "grid", "comment": f"qwen-job:{folder}", "standard_output": "/logs/%x-%A_%a.out", **more,
    }  # fmt: skip


def test_a_job_waits_for_another_and_for_what_it_asked_for_itself(queue: Queue) -> None:
    queue.holds({"job_id": 7, "name": "first"})
    result = queue.submit("--after", "first", slurm={"sbatch": {"dependency": "singleton"}})
    assert result.stdout == "41\n"
    assert queue.asked == ["--parsable --dependency=afterok:7,singleton --kill-on-invalid-dep=yes"]


def test_waiting_for_a_sweep_is_waiting_for_all_of_it(queue: Queue, tmp_path: Path) -> None:
    queue.holds(array_task(7, 0, tmp_path), array_task(7, 1, tmp_path))
    queue.submit("--after", "grid")
    assert "afterok:7 " in queue.asked[0]


def test_a_job_that_is_not_there_cannot_be_waited_for(queue: Queue) -> None:
    result = queue.submit("--after", "nobody")
    assert isinstance(result.exception, UsageError) and "no job 'nobody'" in str(result.exception)


def remembered(job: str, run: Path, name: str = "tiny") -> None:
    """A job that the queue has forgotten, as the user's list knows it."""
    remember("slurm", job, name, str(run))


def test_a_forgotten_job_is_waited_for_only_if_it_has_succeeded(queue: Queue, tmp_path: Path) -> None:
    remembered("7", tmp_path / "run", "first")
    result = queue.submit("--after", "7")
    assert isinstance(result.exception, UsageError) and "first (7) has ended and did not succeed" in str(
        result.exception
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "done.json").write_text("{}")
    assert queue.submit("--after", "7").exit_code == 0
    assert queue.asked == ["--parsable"], "Slurm is not told of a job that it does not know"


def test_a_second_job_in_a_folder_is_refused_by_the_first_one_s_id(queue: Queue) -> None:
    queue.holds({"job_id": 7, "name": "first", "comment": "qwen-job:/runs/tiny"})
    result = queue.submit()
    assert isinstance(result.exception, ClusterRefused)
    assert "job.yaml:15:1: output: job 7 (first, running) is using /runs/tiny: submit with --after 7" in str(
        result.exception
    )
    assert queue.submit("--after", "7").exit_code == 0
    queue.holds({"job_id": 7, "name": "first", "comment": "qwen-job:/runs/tiny", "job_state": "FAILED"})
    assert queue.submit().exit_code == 0


@pytest.mark.parametrize("command", ["cancel", "logs", "status"])
def test_an_empty_word_names_no_job(queue: Queue, command: str) -> None:
    queue.holds({"job_id": 7, "name": "only"})
    result = CliRunner().invoke(cli, [command, ""])
    assert isinstance(result.exception, UsageError) and "JOB is empty" in str(result.exception)
    assert isinstance(queue.submit("--after", "").exception, UsageError)


def test_a_forgotten_job_s_log_is_that_of_its_folder(queue: Queue, tmp_path: Path) -> None:
    queue.holds()
    remembered("7", tmp_path / "run")
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "logs" / "node-0.log").write_text("what node 0 said\n")
    for word in ("7", "tiny", str(tmp_path / "run")):
        result = CliRunner().invoke(cli, ["logs", word])
        assert result.exit_code == 0 and result.stdout == "what node 0 said\n"


def test_the_accounting_tells_what_became_of_a_forgotten_job(queue: Queue, tmp_path: Path) -> None:
    remembered("7", tmp_path / "run")
    told = {"jobs": [{"job_id": 7, "state": {"current": ["FAILED"]}, "exit_code": {"return_code": {"number": 4}}}]}
    sacct = queue.folder / "bin" / "sacct"
    sacct.write_text(f"#!/bin/bash\necho '{json.dumps(told)}'\n")
    sacct.chmod(0o755)
    (job,) = find("7", None)
    assert (job.entry.state, job.entry.reason) == ("failed", "exit code 4: The conversations are invalid")
    result = CliRunner().invoke(cli, ["cancel", "7"])
    assert result.exit_code == 0 and "tiny (7) has already ended (failed, exit code 4" in result.stderr
    sacct.write_text("#!/bin/bash\necho 'Slurm accounting storage is disabled' >&2; exit 1\n")
    assert find("7", None)[0].entry.state == "gone"


def test_a_run_s_folder_is_its_training_and_cancel_ends_what_waits_for_it_too(queue: Queue, tmp_path: Path) -> None:
    cancelled = tmp_path / "bin" / "scancel"
    cancelled.write_text('#!/bin/bash\necho "$*" >> "$LAB/scancel.log"\n')
    cancelled.chmod(0o755)
    remembered("7", tmp_path / "run")
    remembered("8", tmp_path / "run", "tiny-evaluate")
    waiting = {"job_id": 8, "name": "tiny-evaluate", "job_state": "PENDING", "state_reason": "Dependency"}
    queue.holds({"job_id": 7, "name": "tiny", "comment": f"qwen-job:{tmp_path}/run"}, waiting)
    assert find_one(str(tmp_path / "run"), None).entry.id == "7"
    assert CliRunner().invoke(cli, ["cancel", str(tmp_path / "run")]).exit_code == 0
    assert (tmp_path / "scancel.log").read_text() == "8\n7\n"


def test_a_sweep_s_folder_names_its_tasks(queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": [{"folder": "seed=1"}, {"folder": "seed=2"}]}))
    remembered("7", tmp_path, "grid")
    queue.holds(array_task(7, 0, tmp_path), array_task(7, 1, tmp_path))
    assert {job.entry.id for job in find(str(tmp_path), None)} == {"7_0", "7_1"}
    assert [job.entry.id for job in find_live(str(tmp_path), None)] == ["7"]


@pytest.mark.parametrize(
    "answer",
    [
        "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
        """echo '{"jobs": [], "errors": [{"description": "Failed while looking for jobs", "error_number": -1}]}'""",
    ],
)
def test_a_queue_that_cannot_be_asked_is_not_an_empty_one(queue: Queue, tmp_path: Path, answer: str) -> None:
    (queue.folder / "bin" / "squeue").write_text(f"#!/bin/bash\n{answer}\n")
    remembered("7", tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "heartbeat").write_text(json.dumps({"state": "training", "step": 3, "total_steps": 9}))
    for words in (["status"], ["status", "-t", "slurm"], ["status", "tiny"]):
        result = CliRunner().invoke(cli, words)
        assert "training" in result.stdout and "3/9" in result.stdout
        assert isinstance(result.exception, EnvironmentFault) and "unreachable" in str(result.exception)
    with pytest.raises(EnvironmentFault):
        find_live("tiny", None)


def test_what_is_said_of_a_job_that_ended_is_how(queue: Queue) -> None:
    queue.holds(
        {"job_id": 1, "name": "a", "job_state": "CANCELLED", "state_reason": "JobHeldUser"},
        {"job_id": 2, "name": "b", "job_state": "FAILED", "state_reason": "NonZeroExitCode", "exit_code": 1024},
        {"job_id": 3, "name": "c", "job_state": "FAILED", "exit_code": {"return_code": 0, "signal": {"signal_id": 9}}},
        {"job_id": 4, "name": "d", "job_state": "PENDING", "state_reason": "JobHeldUser"},
        {"job_id": 5, "name": "e", "job_state": "PENDING", "state_reason": "Licenses"},
    )
    assert {job.entry.name: job.entry.reason for job in find(None, None)} == {
        "a": "", "b": "exit code 4: The conversations are invalid", "c": "signal 9",
        "d": "held; 'scontrol release' releases it (JobHeldUser)", "e": "Licenses",
    }  # fmt: skip


def test_the_follow_up_waits_for_the_job(queue: Queue) -> None:
    result = queue.submit("--then", "evaluate", data={"train": "/d/a.json", "eval": "/d/b.json"})
    assert result.stdout == "41\n" and "tiny-evaluate.sbatch: job 42 waits for 41" in result.stderr
    assert queue.asked == ["--parsable", "--parsable --dependency=afterok:41 --kill-on-invalid-dep=yes"]


def test_then_is_not_passed_over_in_silence(queue: Queue) -> None:
    result = queue.submit("--then", "evaluate", evaluate=None)
    assert isinstance(result.exception, JobError) and "evaluate: is null" in str(result.exception)


def test_separate_jobs_are_submitted_one_by_one(queue: Queue) -> None:
    result = queue.submit("--separate", sweep={"cluster.nodes": [1, 2]})
    assert result.stdout == "41\n42\n"
    assert [entry.entry.name for entry in find("tiny-1", None)] == ["tiny-1"]


def test_a_time_over_the_partition_s_is_refused(queue: Queue) -> None:
    result = queue.submit("--set", "slurm.time=36h")
    assert isinstance(result.exception, ClusterRefused)
    assert str(result.exception).startswith("slurm.time: 1-12:00:00 is over the limit of partition gpu, 1-00:00:00")
    result = queue.submit("--set", "slurm.sbatch={time: 1-12}")
    assert isinstance(result.exception, ClusterRefused)
    assert str(result.exception).startswith("slurm.sbatch.time: 1-12 is over the limit of partition gpu")


def test_the_longest_of_the_partitions_counts(queue: Queue) -> None:
    (queue.folder / "bin" / "scontrol").write_text(
        "#!/bin/bash\necho PartitionName=gpu MaxTime=12:00:00; echo PartitionName=long MaxTime=1-00:00:00\n"
    )
    result = queue.submit("--set", "slurm={time: 36h, partition: 'gpu,long'}")
    assert "is over the limit of partition gpu, long, 1-00:00:00" in str(result.exception)


def test_a_refusal_names_what_was_written_under_sbatch(queue: Queue) -> None:
    words = "sbatch: error: Batch job submission failed: Invalid partition name specified"
    (queue.folder / "bin" / "sbatch").write_text(f"#!/bin/bash\necho '{words}' >&2; exit 1\n")
    result = queue.submit(slurm={"sbatch": {"partition": "nope"}})
    assert str(result.exception).startswith("slurm.sbatch.partition: Slurm refuses: Batch job")


@pytest.mark.parametrize("words", [["--after", "x"], ["--chain", "3"], ["--then", "evaluate"]])
def test_what_only_slurm_can_is_refused_elsewhere(queue: Queue, words: list[str]) -> None:
    (queue.folder / "job.yaml").write_text(yaml.safe_dump(PINNED))
    result = CliRunner().invoke(cli, ["submit", str(queue.folder / "job.yaml"), "-t", "local", *words])
    assert result.exit_code != 0 and "add --target slurm" in str(result.exception)


def test_a_slurm_that_does_not_answer_is_no_refusal(queue: Queue) -> None:
    lost = "#!/bin/bash\necho 'sbatch: error: Unable to contact slurm controller (connect failure)' >&2; exit 1\n"
    (queue.folder / "bin" / "sbatch").write_text(lost)
    result = queue.submit()
    assert isinstance(result.exception, EnvironmentFault) and "cannot reach a cluster" in str(result.exception)


@pytest.mark.parametrize(
    ("words", "field", "remedy"),
    [
        (
            "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            "slurm.qos or slurm.account",
            "sacctmgr show qos",
        ),
        ("Invalid account or account/partition combination specified", "slurm.account", "sacctmgr show assoc"),
        ("Job's account not permitted to use this partition (gpu allows a)", "slurm.account", "sacctmgr show assoc"),
        ("Job's QOS not permitted to use this partition (gpu allows q)", "slurm.qos", "sacctmgr show assoc"),
        ("Invalid qos specification", "slurm.qos", "sacctmgr show assoc"),
        ("User's group not permitted to use this partition", "slurm.partition", "sinfo --summarize"),
        ("Access/permission denied", "slurm.partition", "sinfo --summarize"),
        ("Invalid partition name specified", "slurm.partition", "sinfo --summarize"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "slurm.time", ""),
        ("Invalid --mail-type specification", "slurm.sbatch.mail-type", ""),
        ("Invalid node name specified", "slurm.sbatch.nodelist or slurm.sbatch.exclude", "sinfo --Node"),
    ],
)
def test_a_refusal_names_the_field_and_the_way_out(queue: Queue, words: str, field: str, remedy: str) -> None:
    (queue.folder / "bin" / "sbatch").write_text(
        f'#!/bin/bash\necho "sbatch: error: Batch job submission failed: {words}" >&2; exit 1\n'
    )
    result = queue.submit()
    assert isinstance(result.exception, ClusterRefused)
    said = str(result.exception)
    assert said.startswith(f"{field}: Slurm refuses: ") and words in said and remedy in said.partition(words)[2]


def test_without_sbatch_it_says_where_to_go(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(queue.folder))
    result = queue.submit()
    assert isinstance(result.exception, EnvironmentFault) and "run this on a login node" in str(result.exception)


def test_a_task_of_a_sweep_has_its_own_run_id_and_log(queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": [{"folder": "seed=1"}, {"folder": "seed=2"}]}))
    waiting = {"job_id": 7, "array_task_id": None, "array_task_string": "2-3%1", "job_state": "PENDING"}
    newer = {
        "array_job_id": {"set": True, "infinite": False, "number": 7},
        "array_task_id": {"set": True, "infinite": False, "number": 1}, "job_state": ["RUNNING"],
    }  # fmt: skip
    queue.holds(array_task(7, 0, tmp_path), array_task(7, 1, tmp_path, **newer), array_task(7, 4, tmp_path, **waiting))
    found = {job.entry.id: job.entry for job in find("7", "slurm")}
    assert set(found) == {"7_0", "7_1", "7_[2-3]"}
    assert (found["7_1"].run, found["7_1"].log) == (str(tmp_path / "seed=2"), "/logs/grid-7_1.out")
    assert found["7_[2-3]"].run == str(tmp_path)
    assert find_one("grid", "slurm", whole=True).entry.id == "7"
    with pytest.raises(UsageError, match="names 3 jobs"):
        find_one("grid", "slurm")
    assert find_one("7_1", "slurm", whole=True).entry.id == "7_1"


def test_tasks_that_were_cancelled_before_they_began_have_no_number(queue: Queue, tmp_path: Path) -> None:
    for none in (None, 0xFFFFFFFE, {"set": False, "number": 0}):
        queue.holds(array_task(7, 0, tmp_path, array_task_id=none, job_state="CANCELLED"))
        assert [job.entry.id for job in find(None, "slurm")] == ["7"]


def test_a_sweep_s_runs_follow_each_other_on_this_machine(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\nif [ "$1" = -c ]; then echo 1; exit; fi\necho "$*" >> {tmp_path}/ran\nexit 4\n')
    python.chmod(0o755)
    job = {
        **PINNED,
        "output": str(tmp_path / "runs"),
        "local": {"python": str(python)},
        "sweep": {"train.seed": [1, 2]},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    result = CliRunner().invoke(cli, ["submit", str(tmp_path / "job.yaml"), "--target", "local"])
    assert result.exit_code == 4
    ran = (tmp_path / "ran").read_text().splitlines()
    assert ["seed=1" in ran[0], "seed=2" in ran[1], len(ran)] == [True, True, 2]


KUBECTL = """#!/bin/bash
case "$*" in
  *pytorchjobs*) echo '{"items": [{"metadata": {"name": "x", "namespace": "team"}, "kind": "PyTorchJob"}]}' ;;
  *) echo '{"items": []}' ;;
esac
"""


def test_a_job_of_one_queue_needs_no_answer_of_another(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    (queue.folder / "kubeconfig").touch()
    monkeypatch.setenv("KUBECONFIG", str(queue.folder / "kubeconfig"))
    for name, text in {"squeue": "#!/bin/bash\necho asked > $LAB/asked\nexit 1\n", "kubectl": KUBECTL}.items():
        (queue.folder / "bin" / name).write_text(text)
        (queue.folder / "bin" / name).chmod(0o755)
    remembered("7", queue.folder / "run")
    assert [job.entry.id for job in find_live("team/x", None)] == ["team/x"]
    assert not (queue.folder / "asked").exists()
    assert [job.entry.id for job in find_live("x", None)] == ["team/x"]
    with pytest.raises(EnvironmentFault):
        find_live("tiny", None)


def test_what_to_do_next_is_said_of_a_job_that_could_go_on(queue: Queue) -> None:
    states = ("PREEMPTED", "NODE_FAIL", "TIMEOUT", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY")
    queue.holds(*({"job_id": n, "name": state, "job_state": state} for n, state in enumerate(states, 1)))
    for job in find(None, None):
        assert "submit again" in job.entry.reason, job.entry.state
    queue.holds({"job_id": 9, "job_state": "FAILED", "exit_code": {"return_code": 160, "signal": {}}})
    assert "submit again" in find("9", None)[0].entry.reason


def test_a_folder_that_may_not_be_read_does_not_end_the_list(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_job.launch.find.forbids", lambda folder: "no permission" if "closed" in folder else "")
    queue.holds({"job_id": 1, "name": "a", "comment": "qwen-job:/closed"}, {"job_id": 2, "name": "b"})
    assert [job.entry.reason for job in find(None, None)] == ["", "/closed: no permission"]
