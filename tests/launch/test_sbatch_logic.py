"""What the sbatch script decides at every ending and retry, run in bash with stand-ins for Slurm's programs."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.script_lab import ScriptLab


@pytest.fixture
def lab(tmp_path: Path) -> ScriptLab:
    return ScriptLab(tmp_path)


def test_a_complete_run_ends_with_0(lab: ScriptLab) -> None:
    assert lab.ends(0, {0: 0, 1: 0}, then=lab.finished) == 0
    assert "complete" in lab.said and not lab.requeued


def test_the_node_script_gets_rank_address_port_and_rendezvous(lab: ScriptLab) -> None:
    lab.ends(0, then=lab.finished)
    arguments = (lab.folder / "srun.args").read_text().splitlines()
    assert arguments[-6:-2] == [f"{lab.run_folder}/launch/node.sh", "host1", "61007", "7-0"]


def test_a_run_that_is_done_is_not_run_again(lab: ScriptLab) -> None:
    lab.ends(0, then=lab.finished)
    (lab.folder / "srun.args").unlink()
    assert lab.ends(9) == 0 and "train.resume: extend" in lab.said
    assert not (lab.folder / "srun.args").exists()


def test_0_without_done_json_is_no_success(lab: ScriptLab) -> None:
    assert lab.ends(0) == 1 and "done.json is missing" in lab.said


@pytest.mark.parametrize(
    ("srun", "nodes", "code"),
    [
        (7, {0: 7}, 7), (1, {}, 1), (143, {0: 143, 1: 7}, 7), (137, {0: 4, 1: 137}, 4), (143, {0: 1, 1: 143}, 1),
        (161, {0: 161, 1: 10}, 10), (2, {}, 2),
    ],
)  # fmt: skip
def test_a_final_code_of_any_node_ends_the_job(lab: ScriptLab, srun: int, nodes: dict[int, int], code: int) -> None:
    assert lab.ends(srun, nodes) == code
    assert "which is final" in lab.said and not lab.requeued


@pytest.mark.parametrize(
    ("srun", "nodes", "code"),
    [(160, {0: 160}, 160), (143, {0: 160, 1: 143}, 160), (137, {}, 137), (143, {0: 143}, 143), (137, {0: 1}, 137),
     (143, {0: 162, 1: 162}, 162)],
)  # fmt: skip
def test_a_retryable_code_requeues(lab: ScriptLab, srun: int, nodes: dict[int, int], code: int) -> None:
    assert lab.ends(srun, nodes) == code
    assert lab.requeued and f"exit code {code}" in lab.said


def test_tries_without_a_newer_checkpoint_end_with_8(lab: ScriptLab) -> None:
    codes = [lab.ends(161, attempt=attempt) for attempt in range(3)]
    assert codes == [161, 161, 8] and "gave up: 3 attempts in a row" in lab.said


def test_a_newer_checkpoint_begins_the_count_anew(lab: ScriptLab) -> None:
    steps = [None, None, 50, None, None, None]
    codes = [
        lab.ends(161, attempt=attempt, then=lab.checkpoint(step) if step else "") for attempt, step in enumerate(steps)
    ]
    assert codes == [161, 161, 161, 161, 161, 8]


def test_an_incomplete_checkpoint_is_no_progress(lab: ScriptLab) -> None:
    for attempt in range(3):
        code = lab.ends(161, attempt=attempt, then=f"mkdir -p '{lab.run_folder}/checkpoints/step-{attempt}0/rank0'")
    assert code == 8


def test_the_number_of_retries_is_bounded(tmp_path: Path) -> None:
    lab = ScriptLab(tmp_path, retry={"max_retries": 1})
    assert [lab.ends(160, attempt=n, then=lab.checkpoint(n + 1)) for n in range(2)] == [160, 8]
    assert "retry.max_retries" in lab.said


def test_without_requeue_the_code_is_passed_on(tmp_path: Path) -> None:
    lab = ScriptLab(tmp_path, slurm={"requeue": False})
    assert lab.ends(160) == 160 and "submit again to resume" in lab.said and not lab.requeued


def test_a_requeue_that_slurm_refuses_keeps_the_code(lab: ScriptLab) -> None:
    (lab.folder / "refuse").touch()
    assert lab.ends(161) == 161


def test_a_cancelled_job_is_left_to_slurm(lab: ScriptLab) -> None:
    (lab.folder / "state").write_text("COMPLETING\n")
    assert lab.ends(143) == 143 and not lab.requeued


@pytest.mark.parametrize("sign", ['echo "7-1" > "$LAB/run/launch/token"', 'echo "JobId=7 Restarts=1 X=y" > "$LAB/job"'])
@pytest.mark.parametrize("spares", [0, 1])
def test_a_script_that_wakes_up_leaves_a_later_attempt_alone(tmp_path: Path, sign: str, spares: int) -> None:
    lab = ScriptLab(tmp_path, slurm={"spare_nodes": spares})
    assert lab.ends(128, {0: 128}, then=sign) == 128
    assert not lab.requeued and "a later attempt of this job has begun" in lab.said


def test_an_unhealthy_node_is_left_out_of_the_next_try(lab: ScriptLab) -> None:
    assert lab.ends(163, {0: 143, 1: 163}) == 163
    assert "update JobId=7 ExcNodeList=host2" in (lab.folder / "scontrol.log").read_text() and lab.requeued


def test_an_unhealthy_node_stays_in_where_no_other_has_what_the_job_asks_for(lab: ScriptLab) -> None:
    (lab.folder / "no-others").touch()
    assert lab.ends(163, {0: 143, 1: 163}) == 163 and lab.requeued
    assert "is kept: too few other nodes satisfy the job" in lab.said
    assert "--test-only --partition=p " in (lab.folder / "sbatch.log").read_text()
    assert "ExcNodeList" not in (lab.folder / "scontrol.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_reaches_srun_as_usr1(lab: ScriptLab, number: signal.Signals) -> None:
    (lab.folder / "srun.code").write_text("1")
    wait = 'trap "touch $LAB/got; exit 160" USR1; touch $LAB/up; for _ in $(seq 200); do /bin/sleep 0.05; done'
    (lab.folder / "srun.sh").write_text(wait)
    script = lab.folder / "job.sh"
    script.write_text(lab.script)
    process = subprocess.Popen(["bash", script], env=lab.env, stdout=subprocess.PIPE, text=True)
    while not (lab.folder / "up").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    said = process.communicate(timeout=30)[0]
    assert (lab.folder / "got").exists() and lab.requeued
    assert process.returncode == 160 and f"signal {number.name[3:]}: saving" in said


def test_the_limit_that_holds_is_given_to_the_nodes(lab: ScriptLab) -> None:
    (lab.folder / "limit").write_text("1-02:08:09\n")
    lab.ends(160)
    given = int((lab.folder / "srun.args").read_text().splitlines()[-1])
    # Counted from the start of the step, which is some moments into the job.
    assert 0 <= 26 * 3600 + 8 * 60 + 9 - given < 30
    (lab.folder / "limit").write_text("UNLIMITED\n")
    lab.ends(160, attempt=1)
    assert (lab.folder / "srun.args").read_text().splitlines()[-1] == ""


def test_a_limit_that_was_extended_is_passed_on_near_its_end(lab: ScriptLab) -> None:
    (lab.folder / "limit").write_text("6:00\n")
    (lab.folder / "left").write_text("1:00:00\n")
    ends = lab.run_folder / "launch" / "ends_at"
    lab.ends(160, then=f"for _ in $(seq 600); do [ -e '{ends}' ] && break; /bin/sleep 0.05; done")
    ends_at, started = map(int, ends.read_text().split())
    assert abs(ends_at - started - 3600) < 60
    assert started == int((lab.folder / "srun.args").read_text().splitlines()[-2])
    assert "the time limit was extended: 3600 s are left" in lab.said


def test_a_signal_that_comes_at_once_because_the_limit_is_short_is_not_heard_yet(lab: ScriptLab) -> None:
    (lab.folder / "limit").write_text("2:00\n")
    then = f"kill -s USR1 $PPID; /bin/sleep 0.5; {lab.finished}"
    assert lab.ends(0, then=then) == 0 and "saving" not in lab.said


def test_the_configs_are_written_and_earlier_ones_kept(lab: ScriptLab) -> None:
    lab.ends(160)
    train = lab.run_folder / "train.yaml"
    first = train.read_text()
    lab.ends(160, attempt=1)
    assert train.read_text() == first and len(list(lab.run_folder.glob("train.yaml*"))) == 1
    train.write_text("mine\n")
    lab.ends(160, attempt=2)
    kept = [path for path in lab.run_folder.glob("train.yaml.*") if path.read_text() == "mine\n"]
    assert train.read_text() == first and len(kept) == 1
    assert json.loads((lab.run_folder / "deepspeed.json").read_text())["train_batch_size"] == 32


def test_a_folder_that_cannot_be_made_is_an_environment_fault(tmp_path: Path) -> None:
    lab = ScriptLab(tmp_path)
    lab.run_folder.write_text("a file is in the way")
    assert lab.ends(0) == 5 and "cannot create" in lab.done.stderr


def test_it_must_be_submitted(lab: ScriptLab) -> None:
    del lab.env["SLURM_JOB_ID"]
    assert lab.ends(0) != 0 and "submit this script with sbatch" in lab.done.stderr


@pytest.mark.parametrize(
    ("state", "code"),
    [("RUNNING", 2), ("SUSPENDED", 2), ("CONFIGURING", 2), ("", 160), ("COMPLETED", 160)],
)
def test_a_folder_that_another_job_claimed_is_free_when_that_job_is_gone(lab: ScriptLab, state: str, code: int) -> None:
    launch = lab.run_folder / "launch"
    launch.mkdir(parents=True)
    (launch / "claim").write_text("6\n")
    (launch / "lease").write_text("nonce 3 elsewhere 1:1 Slurm job 6" + " " * 100)
    (lab.folder / "state").write_text(f"{state}\n")
    assert lab.ends(160) == code, lab.said
    assert ("job 6 is using" in lab.said) == (code == 2)
    assert (launch / "claim").read_text().split() == ["6" if code == 2 else "7"]
    assert (launch / "lease").exists() == (code == 2)
    assert (lab.run_folder / "train.yaml").exists() == (code != 2), "nothing of the first job is written over"


def test_a_controller_that_is_away_frees_no_folder(lab: ScriptLab) -> None:
    launch = lab.run_folder / "launch"
    launch.mkdir(parents=True)
    (launch / "claim").write_text("6\n")
    (lab.folder / "state").write_text("\n")
    (lab.folder / "bin" / "scontrol").write_text("#!/bin/bash\nexit 1\n")
    assert lab.ends(160) == 5
    assert (launch / "claim").read_text() == "6\n"


def test_of_many_jobs_in_the_same_moment_one_gets_the_folder(lab: ScriptLab) -> None:
    (lab.folder / "srun.code").write_text("0")
    (lab.folder / "srun.sh").write_text(f"/bin/sleep 3; {lab.finished}")
    jobs = [
        subprocess.Popen(["bash", "-s"], env={**lab.env, "SLURM_JOB_ID": str(number)}, stdin=subprocess.PIPE, text=True)
        for number in range(20, 26)
    ]
    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(lambda job: job.communicate(lab.script, timeout=60), jobs))
    assert sorted(job.returncode for job in jobs) == [0, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("srun", "nodes", "counted"),
    [
        (137, {0: 143, 1: 143}, False), (143, {0: 160, 1: 143}, False), (160, {0: 160, 1: 160}, False),
        (137, {0: 137, 1: 143}, True), (137, {}, True), (163, {0: 163, 1: 143}, True), (253, {0: 143, 1: 143}, True),
    ],
)  # fmt: skip
def test_a_signal_that_is_nobody_s_is_no_attempt_without_progress(
    tmp_path: Path, srun: int, nodes: dict[int, int], counted: bool
) -> None:
    lab = ScriptLab(tmp_path, retry={"max_without_progress": 1})
    code = lab.ends(srun, nodes)
    assert (code == 8, lab.requeued) == (counted, not counted), lab.said


def test_the_folder_says_whose_job_works_in_it(lab: ScriptLab) -> None:
    lab.ends(0, then=lab.finished)
    told = dict(line.split(" ", 1) for line in (lab.run_folder / "launch" / "job").read_text().splitlines())
    assert (told["target"], told["id"]) == ("slurm", "7") and told["user"]


def test_each_attempt_has_a_step_of_its_own_number(lab: ScriptLab) -> None:
    count = 'echo "${*: -1}" >> "$LAB/steps"'
    (lab.folder / "bin" / "srun").write_text(f"#!/bin/bash\n{count}\nexit 137\n")
    for attempt, before in ((0, 0), (1, 1), (3, 3), (9, 1)):
        (lab.folder / "steps").unlink(missing_ok=True)
        lab.ends(137, attempt=attempt)
        steps = (lab.folder / "steps").read_text().splitlines()
        assert steps.count("true") == before == len(steps) - 1
