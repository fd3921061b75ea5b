"""What a user sees on a real Slurm: where the log is, whose job it is, and what a shell full of variables changes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.e2e.test_slurm_arrays import User, user

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
__all__ = ["user"]

# Defaults of Slurm's programs that hide jobs, ask questions or send jobs elsewhere; and what an allocation leaves.
HOSTILE = {
    "SQUEUE_STATES": "PD", "SQUEUE_USERS": "nobody", "SQUEUE_PARTITION": "high", "SQUEUE_FORMAT": "%i",
    "SCANCEL_STATE": "PENDING", "SCANCEL_INTERACTIVE": "1", "SCANCEL_NAME": "x", "SCANCEL_PARTITION": "high",
    "SBATCH_EXPORT": "NONE", "SBATCH_NO_REQUEUE": "1", "SBATCH_TIMELIMIT": "1", "SBATCH_GPUS": "99",
    "SBATCH_JOB_NAME": "x", "SBATCH_OUTPUT": "/no", "SQUEUE_NAMES": "x", "SBATCH_ARRAY_INX": "0-3",
    "SLURM_CPUS_PER_TASK": "99", "SLURM_MEM_PER_CPU": "1", "SLURM_TIME_FORMAT": "%s", "SLURM_HINT": "nomultithread",
    "SLURM_EXPORT_ENV": "NONE", "SLURM_JOB_ID": "4711", "SLURM_NTASKS": "99", "SINFO_FORMAT": "%N",
    "SCONTROL_ALL": "1", "SBATCH_MEM_PER_NODE": "1", "SACCT_FORMAT": "jobid",
}  # fmt: skip
# Runs a command of ours as another user, who may not read this checkout: all modules are loaded before.
AS_NOBODY = """
import getpass, importlib, os, pkgutil, sys
import qwen_job.cli, qwen_job.job, qwen_job.launch
for room in (qwen_job.cli, qwen_job.launch):
    for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
        importlib.import_module(module.name)
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
os.environ["HOME"] = "/nowhere"; os.environ.pop("XDG_STATE_HOME", None); os.chdir("/")
qwen_job.cli.main(sys.argv[1:])
"""


def done(user: User, *, first: str = "") -> dict[str, object]:
    """Return job.yaml's sections for a job that completes after ``first``."""
    run = user.folder / "runs" / "grid"
    return {"slurm": user.stand_in(f"{first} echo '{{}}' > '{run}/done.json'"), "evaluate": None}


def as_nobody(user: User, *words: str | Path) -> tuple[int, str]:
    """Run a command of ours as somebody else and return its exit code and what it says."""
    line = [sys.executable, "-c", AS_NOBODY, *map(str, words)]
    told = user.lab.on("ctl", line, env=user.env, check=False)
    return told.returncode, told.stdout + told.stderr


def test_a_shell_full_of_slurm_s_variables_changes_nothing(user: User) -> None:
    user.write(**done(user, first=f"touch {user.folder}/begun; until [ -e {user.folder}/go ]; do sleep 0.1; done;"))
    user.env |= HOSTILE
    job, _ = user.submit()
    user.wait((user.folder / "begun").exists, "the job runs", job)
    assert (user.lab.job(job)["JobName"], user.lab.job(job)["Requeue"]) == ("grid", "1")
    for word in (str(job), "grid", "runs/grid"):
        # Earlier jobs of the session's cluster have the same name.
        shown = json.loads(user.run(f"qwen-job status {word} --json")[0])
        assert [one["state"] for one in shown if one["id"] == str(job)] == ["running"]
    assert f"job {job} (grid, running) is using" in user.run("qwen-job submit job.yaml -t slurm", check=False)[1]
    user.run("qwen-job cancel grid")
    user.wait_states(job, ["CANCELLED"])


def test_a_variable_that_says_where_jobs_go_is_used_and_said_unless_job_yaml_says_it(user: User) -> None:
    user.write(**done(user))
    user.env["SBATCH_PARTITION"] = "high"
    out, said = user.run("qwen-job submit job.yaml --target slurm")
    assert user.lab.job(int(out))["Partition"] == "high" and "SBATCH_PARTITION" in said
    user.wait_states(int(out), ["COMPLETED"])
    out, said = user.run("qwen-job submit job.yaml -t slurm --set slurm.partition=main --set output=runs/b")
    assert user.lab.job(int(out))["Partition"] == "main" and "ignoring SBATCH_PARTITION=high from your shell" in said


@pytest.mark.parametrize("folder", ["100% %j done", "with space"])
def test_the_log_s_folder_is_made_and_any_submission_folder_will_do(user: User, folder: str) -> None:
    user.folder = user.folder / folder
    user.folder.mkdir()
    user.write(**done(user))
    job, _ = user.submit()
    user.wait_states(job, ["COMPLETED"])
    assert "complete" in user.run(f"qwen-job logs {job}")[0]
    (user.folder / "runs/grid/done.json").unlink()
    again, _ = user.submit(f"--set 'slurm.log_dir={user.folder}/new/50% logs'")
    user.wait_states(again, ["COMPLETED"])
    assert (user.folder / "new/50% logs" / f"grid-{again}.out").exists()
    (user.folder / "in the way").touch()
    (user.folder / "runs/grid/done.json").unlink()
    said = user.run("qwen-job submit job.yaml -t slurm --set 'slurm.log_dir=in the way/x'", check=False)[1]
    assert said.splitlines()[-1].startswith("error: slurm.log_dir: ") and "cannot be created" in said


def test_what_nodes_do_not_see_is_worked_round_by_submit_and_explained_of_sbatch(user: User) -> None:
    user.write(**done(user))
    here = "mkdir -p /tmp/login-only && cd /tmp/login-only"
    job = int(user.run(f"{here} && qwen-job submit {user.folder}/job.yaml --target slurm")[0])
    user.wait_states(job, ["COMPLETED"])
    log = user.folder / "runs" / "grid" / "logs" / f"grid-{job}.out"
    assert log.exists() and "complete" in user.run("qwen-job logs runs/grid")[0]
    (user.folder / "runs/grid/done.json").unlink()
    piped = int(user.run(f"{here} && qwen-job render {user.folder}/job.yaml --target slurm | sbatch --parsable")[0])
    user.wait(lambda: user.lab.job(piped)["Reason"] == "JobLaunchFailure", "Slurm cannot start it", piped)
    (shown,) = json.loads(user.run(f"qwen-job status {piped} --json")[0])
    assert "slurm.log_dir" in shown["reason"] and "/tmp/login-only/" in shown["reason"]
    assert "slurm.log_dir" in user.run(f"qwen-job logs {piped}", check=False)[1]
    user.run(f"scancel {piped}")


def test_a_job_is_known_by_its_folder_to_whoever_may_read_it(user: User) -> None:
    run = user.folder / "runs" / "grid"
    user.write(**done(user, first=f"touch {user.folder}/begun; until [ -e {user.folder}/go ]; do sleep 0.1; done;"))
    job, _ = user.submit("--set 'slurm.sbatch={comment: project-7}'")
    user.wait((user.folder / "begun").exists, "the job runs", job)
    refused = user.run("qwen-job submit job.yaml -t slurm --set 'slurm.sbatch={comment: project-7}'", check=False)[1]
    assert f"job {job} (grid, running) is using" in refused
    for folder in (run, *run.parents[: len(run.relative_to(user.folder.parents[1]).parts)]):
        folder.chmod(0o755)
    code, said = as_nobody(user, "status", run, "--json")
    assert code == 0 and [(one["id"], one["user"], one["state"]) for one in json.loads(said)] == [
        (str(job), "root", "running")
    ], said
    code, said = as_nobody(user, "cancel", run)
    assert code == 6 and "only root may cancel it" in said
    (user.folder / "go").touch()
    user.wait_states(job, ["COMPLETED"])
    # As when Slurm and the user's list have forgotten it.
    user.env["XDG_STATE_HOME"] = str(user.folder / "other")
    user.lab.on("ctl", ["scontrol", "update", f"JobId={job}", "JobName=gone"], check=False)
    (run / "launch" / "job").write_text((run / "launch" / "job").read_text().replace(f"id {job}", "id 999999"))
    assert "complete" in user.run(f"qwen-job logs {run}")[0]
    assert "has already ended" in user.run(f"qwen-job cancel {run}")[1]
    run.chmod(0o700)
    for command in ("status", "logs", "cancel", "sweep"):
        code, said = as_nobody(user, command, run)
        assert code == 5 and "no permission" in said and "belongs to root" in said, (command, said)


def test_root_sees_another_user_s_job_by_its_name(user: User) -> None:
    script = "#!/bin/sh\nsleep 60\n"
    words = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "sbatch", "--parsable", "--chdir=/tmp"]
    words += ["--job-name=theirs", "--output=/dev/null"]
    job = user.lab.on("ctl", words, text=script, cwd=Path("/")).stdout.strip()
    for word in ("theirs", job):
        (shown,) = json.loads(user.run(f"qwen-job status {word} --json")[0])
        assert (shown["id"], shown["user"]) == (job, "nobody")
    assert "theirs" not in user.run("qwen-job status")[0]
    user.run("qwen-job cancel theirs")
    user.wait(lambda: user.lab.job(int(job))["JobState"] == "CANCELLED", "it is cancelled", int(job))


def test_a_complete_run_is_not_submitted_and_a_held_one_is_said_to_be_complete(user: User) -> None:
    user.write(**done(user))
    job, _ = user.submit()
    user.wait_states(job, ["COMPLETED"])
    said = user.run("qwen-job submit job.yaml --target slurm", check=False)[1]
    assert "output: " in said and "is complete (done.json)" in said
    user.run(f"scontrol requeuehold {job}")
    user.wait(lambda: user.lab.job(job)["JobState"] == "PENDING", "it is held", job)
    (shown,) = json.loads(user.run(f"qwen-job status {job} --json")[0])
    assert "the run is complete" in shown["reason"] and f"qwen-job cancel {job}" in shown["reason"]
    user.run(f"scancel {job}")


def test_without_a_controller_the_folder_tells(user: User) -> None:
    run = user.folder / "runs" / "grid"
    user.write(**done(user))
    user.run("qwen-job render job.yaml --target slurm | sbatch --wait")
    user.lab.stop_controller()
    try:
        for word in ("grid", "runs/grid"):
            told = user.lab.on("ctl", f"qwen-job status {word}", cwd=user.folder, env=user.env, check=False)
            assert told.returncode == 5 and "done" in told.stdout, told.stderr
        assert "complete" in user.run(f"qwen-job logs {run}")[0]
    finally:
        user.lab.start_controller()
        user.lab.wait_nodes("up", 60)


def test_attempts_have_steps_of_their_own_and_a_kill_from_outside_is_no_failure(user: User) -> None:
    notes = user.folder / "steps"
    wait = f"if [ $(grep -c . {notes}) -lt 4 ]; then sleep 300 & wait; fi;"
    user.write(**done(user, first=f"echo $SLURM_STEP_ID >> {notes}; {wait}"), retry={"max_without_progress": 1})
    job, _ = user.submit()
    for attempt in range(3):
        user.wait(lambda n=attempt + 1: notes.exists() and len(notes.read_text().split()) == n, "it trains", job)  # type: ignore[misc]
        step = notes.read_text().split()[-1]
        user.run(f"scancel --signal=KILL {job}.{step}")
    user.wait_states(job, ["COMPLETED"])
    steps = notes.read_text().split()
    assert len(set(steps)) == len(steps) == 4, steps
    assert user.said("grid-*.out").count("not counted as a failure") == 3


def test_of_a_sweep_the_tasks_are_in_the_order_of_their_numbers(user: User) -> None:
    user.write(**done(user), sweep={"train.seed": list(range(12))})
    array, _ = user.submit("--set slurm.array_limit=1")
    shown = json.loads(user.run(f"qwen-job status {array} --json")[0])
    tasks = [int(one["id"].partition("_")[2].strip("[").partition("-")[0]) for one in shown]
    assert tasks == sorted(tasks)
    user.run(f"qwen-job cancel {array}")
