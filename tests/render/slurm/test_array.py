"""Sweeps and chains as arrays, the follow-up job, and a sweep on targets that have no arrays."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_job.errors import JobError
from qwen_job.launch.outcomes import runs_of_folder
from qwen_job.render import Bundle, render, render_each
from qwen_job.render.slurm.array import MAX_SCRIPT_BYTES
from qwen_job.run.owner import owner_of
from tests.jobs import bundle, pinned_plan
from tests.render.slurm.reading import sbatch_lines
from tests.render.test_shellcheck import check
from tests.support.script_lab import ScriptLab

GRID = {"train.learning_rate": [1e-5, 2e-5], "env.MODE": ["it's", "$(x)"]}
CLAIM = {"volumes": [{"name": name, "mount_path": f"/{name}", "pvc": "c"} for name in ("runs", "data")]}
EVALUATE = {"data": "/data/held-out.json", "samples": 2}


def refusal(folder: Path, **sections: Any) -> str:
    with pytest.raises(JobError) as caught:
        bundle(folder, "slurm", **sections)
    return str(caught.value).replace(f"{folder}/", "")


def options(made: Bundle, name: str = "tiny.sbatch") -> dict[str, str]:
    """Return the options in the script itself, which are those that the bundle carries."""
    found = dict(word.removeprefix("--").partition("=")[::2] for word in sbatch_lines(made.files[name]))
    assert found == made.requests[name].values
    return found


def follow_up(folder: Path, **sections: Any) -> tuple[Bundle, dict[str, str]]:
    made = bundle(folder, "slurm", **{"evaluate": EVALUATE, **sections})
    return made, options(made, "tiny-evaluate.sbatch")


def test_a_sweep_is_an_array_with_a_task_for_each_run(tmp_path: Path) -> None:
    made = bundle(tmp_path, "slurm", sweep=GRID, slurm={"array_limit": 2, "log_dir": "/logs"})
    asked = options(made)
    assert (asked["array"], asked["output"]) == ("0-3%2", "/logs/%x-%A_%a.out")
    assert asked["comment"] == "qwen-job:/runs/tiny" and asked["job-name"] == "tiny"
    check(tmp_path, made.files)
    check(tmp_path, bundle(tmp_path, "slurm", sweep=GRID, container={"runtime": "pyxis", "image": "/x.sqsh"}).files)


def test_every_task_writes_the_files_of_its_own_run(tmp_path: Path) -> None:
    output = tmp_path / "runs"
    made = bundle(tmp_path, "slurm", sweep=GRID, output=str(output))
    head = made.text[: made.text.index("\n# --- earlier attempts")]
    for task in range(4):
        words = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": str(6 + task)}
        subprocess.run(["bash", "-s"], input=head, env={"PATH": "/usr/bin:/bin", **words}, text=True, check=True)
    index = json.loads((output / "sweep.json").read_text())
    for task, run in enumerate(index["runs"]):
        folder = output / run["folder"]
        written = yaml.safe_load((folder / "train.yaml").read_text())
        assert written["output_dir"] == str(folder) and written["name"] == f"tiny-{task}"
        assert written["training"]["learning_rate"] == run["values"]["train.learning_rate"]
        assert yaml.safe_load((folder / "job.yaml").read_text())["env"] == {"MODE": run["values"]["env.MODE"]}
    assert len(index["runs"]) == 4 and not list(output.rglob("*.new.*"))


@pytest.mark.parametrize(
    ("target", "end"), [("local", "# A free port"), ("hostfile", "master_addr="), ("slurm", "# --- earlier attempts")]
)
def test_every_run_by_itself_lists_the_sweep_and_says_whose_it_is(tmp_path: Path, target: str, end: str) -> None:
    output = tmp_path / "it's a sweep"
    grid = {**GRID, "env.MODE": ["it's", "x y"]}
    plan = pinned_plan(tmp_path, sweep=grid, output=str(output), hostfile={"hosts": ["a"]})
    made = render_each(plan, target, separate=True)
    for _, one in list(made.values())[1:3]:
        text = one.files.get("launch.sh", one.text)
        head = text[: text.index(f"\n{end}")]
        env = {"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "5"}
        subprocess.run(["bash", "-s"], input=head, env=env, text=True, check=True, stdout=subprocess.PIPE)
    _, runs = runs_of_folder(output)
    assert runs == [(run.folder, run.values) for run in plan.sweep] and len(runs) == 4
    assert sorted(path.name for path in output.iterdir()) == sorted([*list(made)[1:3], "sweep.json"])
    owner = owner_of(output)
    assert (owner.target, owner.id) == (("slurm", "5") if target == "slurm" else ("local", ""))


def test_a_task_that_the_sweep_does_not_have_ends_at_once(tmp_path: Path) -> None:
    text = bundle(tmp_path, "slurm", sweep=GRID).text
    env = {"PATH": "/usr/bin:/bin", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "4"}
    done = subprocess.run(["bash", "-s"], input=text, env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 2 and "no run with this index" in done.stderr


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"cluster.nodes": [1, 2]}, "sweep.cluster.nodes: changes --exclusive, --nodes, which one array cannot"),
        ({"cluster.gpus_per_node": [2, 4]}, "sweep.cluster.gpus_per_node: changes --gpus-per-node"),
        ({"train.seed": [1, 2], "slurm.partition": ["a", "b"]}, "sweep.slurm.partition: changes --partition"),
        ({"retry.max_retries": [1, 2]}, "sweep.retry.max_retries: changes retry.max_retries"),
    ],
)
def test_what_changes_the_allocation_is_refused_in_an_array(tmp_path: Path, sweep: Any, message: str) -> None:
    said = refusal(tmp_path, sweep=sweep)
    assert said.startswith("job.yaml:") and message in said and "--separate" in said and "\n" not in said


def test_separate_jobs_may_differ_in_everything(tmp_path: Path) -> None:
    plan = pinned_plan(tmp_path, sweep={"cluster.nodes": [1, 2]})
    made = render_each(plan, "slurm", separate=True)
    assert [options(one, f"tiny-{i}.sbatch")["nodes"] for i, (_, one) in enumerate(made.values())] == ["1", "2"]
    assert list(made) == ["nodes=1", "nodes=2"]


@pytest.mark.parametrize("target", ["local", "hostfile", "kubernetes", "helm"])
def test_elsewhere_every_run_is_a_bundle_of_its_own(tmp_path: Path, target: str) -> None:
    plan = pinned_plan(
        tmp_path,
        sweep={"train.seed": [1, 2]},
        hostfile={"hosts": "a"},
        image="registry.example.com/x:y",
        kubernetes=CLAIM,
    )
    with pytest.raises(JobError, match=rf"sweep: on {target} each of its 2 runs is a separate bundle: .*-o DIR"):
        render(plan, target)
    made = render_each(plan, target)
    assert list(made) == ["seed=1", "seed=2"]
    assert len({one.text for _, one in made.values()}) == (1 if target == "hostfile" else 2)


def test_a_script_too_long_for_slurm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_job.render.slurm.array.MAX_SCRIPT_BYTES", 20_000)
    assert "sweep: 4 runs make a script of" in refusal(tmp_path, sweep=GRID)
    assert 4 * 2**20 - MAX_SCRIPT_BYTES < 2**17


def test_a_chain_is_an_array_of_one_at_a_time_and_never_requeues(tmp_path: Path) -> None:
    made = bundle(tmp_path, "slurm", slurm={"chain": 5})
    asked = options(made)
    assert asked["array"] == "0-4%1" and asked["output"] == "%x-%A.out" and "no-requeue" in asked
    assert "scontrol requeue" not in made.text
    check(tmp_path, made.files)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"slurm": {"chain": 2}, "sweep": {"train.seed": [1, 2]}}, "slurm.chain: cannot be combined with sweep"),
        ({"slurm": {"chain": 2, "requeue": True}}, "slurm.chain: replaces requeueing"),
        ({"slurm": {"sbatch": {"array": "0-3"}}}, "slurm.sbatch.array: would start several jobs"),
        ({"slurm": {"chain": 1}}, "slurm.chain: "),
        ({"evaluate": {}}, "evaluate.data: is required because nothing is held out"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, sections: Any, message: str) -> None:
    assert message in refusal(tmp_path, **sections)


def test_the_follow_up_asks_for_one_gpu_and_waits_for_success(tmp_path: Path) -> None:
    slurm = {
        "partition": "p",
        "memory": "800G",
        "time": "2d",
        "exclusive": True,
        "sbatch": {"exclude": "n7", "gres": "lscratch:100"},
    }
    made, asked = follow_up(tmp_path, slurm=slurm, cluster={"nodes": 2, "cpus_per_gpu": 4})
    assert asked == {
        "job-name": "tiny-evaluate", "nodes": "1", "ntasks-per-node": "1", "gpus-per-node": "1", "cpus-per-task": "4",
        "mem": "409600M", "output": "%x-%j.out", "open-mode": "append", "requeue": "", "partition": "p",
        "exclude": "n7", "gres": "lscratch:100",
    }  # fmt: skip
    assert made.then == (("tiny-evaluate.sbatch", "afterok"),)
    words = re.search(r"-m qwen_job (evaluate .*)$", made.files["tiny-evaluate.sbatch"], re.MULTILINE)
    assert words and words[1] == "evaluate /runs/tiny --data /data/held-out.json --samples 2 --max-new-tokens 128"
    check(tmp_path, made.files)


def test_the_follow_up_of_a_sweep_has_a_task_for_each_run(tmp_path: Path) -> None:
    made, asked = follow_up(tmp_path, sweep=GRID)
    assert asked["array"] == "0-3" and asked["output"] == "%x-%A_%a.out"
    assert made.then == (("tiny-evaluate.sbatch", "aftercorr"),)
    check(tmp_path, made.files)


def test_the_follow_up_of_a_chain_waits_for_its_end(tmp_path: Path) -> None:
    made, asked = follow_up(tmp_path, slurm={"chain": 3})
    assert made.then == (("tiny-evaluate.sbatch", "afterany"),)
    assert "array" not in asked and "no-requeue" in asked


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer", "podman"])
def test_the_follow_up_runs_in_the_same_container_and_sees_its_data(tmp_path: Path, runtime: str) -> None:
    container = {"runtime": runtime, "image": "/images/x.sqsh" if runtime != "podman" else "registry.example.com/x:y"}
    made, _ = follow_up(tmp_path, container=container, evaluate={"data": "/held/out.json"})
    text = made.files["tiny-evaluate.sbatch"]
    assert container["image"] in text and "/held:/held:ro" in text
    check(tmp_path, made.files)


def engine_calls(folder: Path, runtime: str, code: int) -> list[str]:
    """Run the follow-up, whose step exits with ``code``; return what the batch script then asks of the runtime."""
    container = {"runtime": runtime, "image": "registry.example.com/x:y"}
    lab = ScriptLab(folder, container=container, evaluate=EVALUATE)
    lab.script = lab.files["tiny-evaluate.sbatch"]
    calls, engine = folder / "calls", folder / "bin" / runtime
    engine.write_text(f'#!/bin/bash\necho "$*" >> {calls}\n[ "$1" != ps ] || echo its-id\n')
    engine.chmod(0o755)
    calls.touch()
    (lab.run_folder / "launch").mkdir(parents=True)
    (lab.run_folder / "done.json").write_text("{}")
    assert lab.ends(code) == code
    assert not list(lab.run_folder.glob("launch/*clean_up*"))
    return calls.read_text().splitlines()


@pytest.mark.parametrize(("runtime", "options"), [("docker", ""), ("podman", " --time 0")])
def test_the_container_of_a_killed_follow_up_is_removed(tmp_path: Path, runtime: str, options: str) -> None:
    assert engine_calls(tmp_path, runtime, 137) == [
        "ps --all --quiet --filter label=qwen-job=evaluate.7",
        f"rm --force{options} its-id",
    ]


def test_a_follow_up_that_succeeds_has_no_container_to_remove(tmp_path: Path) -> None:
    assert engine_calls(tmp_path, "podman", 0) == []


def test_the_follow_up_evaluates_what_the_run_holds_out(tmp_path: Path) -> None:
    made = bundle(tmp_path, "slurm", evaluate={"before": False}, data={"eval_split": 0.02})
    text = made.files["tiny-evaluate.sbatch"]
    assert "-m qwen_job evaluate /runs/tiny --data /runs/tiny/held-out.jsonl --samples 5 " in text


def test_a_model_without_success_is_not_measured(tmp_path: Path) -> None:
    made, _ = follow_up(tmp_path, output=str(tmp_path / "run"))
    env = {"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "5"}
    text = made.files["tiny-evaluate.sbatch"]
    done = subprocess.run(["bash", "-s"], input=text, env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 1 and "is not complete (no done.json): nothing to evaluate" in done.stdout


def test_a_job_s_own_template_folders_come_after_those_of_the_command_line(tmp_path: Path) -> None:
    for name in ("site", "mine"):
        (tmp_path / name / "slurm").mkdir(parents=True)
        (tmp_path / name / "slurm" / "job.sbatch.j2").write_text(f"#!/bin/bash\n# {name}\n")
    plan = pinned_plan(tmp_path, template_dirs=["site"])
    assert "# site" in render(plan, "slurm").text
    assert "# mine" in render(plan, "slurm", [tmp_path / "mine"]).text
    assert "template_dirs[0]: none: does not exist" in refusal(tmp_path, template_dirs=["none"])
