"""What people write by mistake, and the word that each error must contain: the field, and what to write instead."""

# ruff: noqa: E501 - tables, one case a line
from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qwen_job.job.load import load_job
from qwen_job.render.configs import job_document
from tests.jobs import load, plan, problems


@pytest.mark.parametrize(
    ("text", "field", "word"),
    [
        ("slurm: {time: 24}", "slurm.time", "write 24h, 24m or 24s"),
        ("slurm: {time: '90'}", "slurm.time", "write 90h, 90m or 90s"),
        ("evaluate: {time: 1}", "evaluate.time", "write 1h, 1m or 1s"),
        ("slurm: {memory: 400}", "slurm.memory", "write 400G or 400M"),
        ("slurm: {memory: '400'}", "slurm.memory", "write 400G or 400M"),
        ("kubernetes: {memory: 200}", "kubernetes.memory", "write it with its unit, e.g. 64Gi"),
        ("slurm: {scratch: $TMPDIR}", "slurm.scratch", "write ${TMPDIR} and add TMPDIR to uses_env"),
        ("container: {mounts: ['/data:$HOME/data']}", "container.mounts[0]", "write ${HOME} and add HOME to uses_env"),
        ("local: {python: $HOME/venv/bin/python}", "local.python", "(or write ~)"),
        ("slurm: {scratch: ~nosuchuser/x}", "slurm.scratch", "no such user; write the folder in full"),
    ],
)  # fmt: skip
def test_text_that_can_be_read_in_two_ways_is_refused(tmp_path: Path, text: str, field: str, word: str) -> None:
    (found,) = problems(tmp_path, text)
    assert f" {field}: " in found and word in found


def test_a_folder_that_a_shell_would_expand_is_refused(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "", "output=/runs/$USER/tiny")
    assert found.startswith("--set: output: $USER would stay as typed") and "add USER to uses_env" in found


@pytest.mark.parametrize(
    "text", ["slurm: {setup: [cd $HOME/x]}", "env: {A: $B}", "kubernetes: {pod: {a: $HOME/x}}", "slurm: {log_dir: a$b}"]
)
def test_a_dollar_that_names_no_folder_stays(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text) == []


def test_a_tilde_is_the_users_home_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    job = load(
        tmp_path, "slurm: {python: ~/v/bin/python, scratch: ~/s, log_dir: ~/l}\ncontainer: {mounts: ['~/d:/d']}\n"
    )
    assert (job.slurm.python, job.slurm.scratch, job.slurm.log_dir) == (
        "/home/me/v/bin/python",
        "/home/me/s",
        "/home/me/l",
    )
    assert job.container.mounts == ["/home/me/d:/d"]


@pytest.mark.parametrize(("written", "gpu", "other"), [("A100", "A100-80G", "A100-40G"), ("v100", "V100-32G", "V100-16G")])  # fmt: skip
def test_a_gpu_of_two_sizes_is_named_in_the_plan(tmp_path: Path, written: str, gpu: str, other: str) -> None:
    found = [one for one in plan(tmp_path, "", f"cluster.gpu={written}").warnings if "known, too" in one]
    assert found == [f"cluster.gpu: {written} is planned as {gpu}; {other} is known, too: write which one"]


@pytest.mark.parametrize("written", ["A100-80G", "NVIDIA A100-SXM4-80GB", "H100", "CPU"])
def test_a_gpu_of_one_size_needs_no_warning(tmp_path: Path, written: str) -> None:
    assert not [one for one in plan(tmp_path, "", f"cluster.gpu={written}").warnings if "known, too" in one]


@pytest.mark.parametrize(
    ("written", "seconds"), [("36h", 129600), ("90s", 90), ("90:00", 5400), ("2-00:00:01", 172801)]
)
def test_the_job_yaml_of_a_run_reads_the_same_time_limit(tmp_path: Path, written: str, seconds: int) -> None:
    document = job_document(plan(tmp_path, f"slurm: {{time: {written!r}}}"))
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(document), "utf-8")
    assert load_job([path]).slurm.time == load(tmp_path, f"slurm: {{time: {written!r}}}").slurm.time == seconds


@pytest.mark.parametrize(
    ("written", "name"), [("Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"), ("qwen3-8b", "Qwen/Qwen3-8B")]
)
def test_a_name_without_its_owner_is_completed(tmp_path: Path, written: str, name: str) -> None:
    job = load(tmp_path, "", f"model={written}")
    assert job.model.name == name and job_document(plan(tmp_path, "", f"model={written}"))["model"] == {"name": name}


@pytest.mark.parametrize(
    ("sets", "field", "word"),
    [
        ("model=Qwen2.5-7B-Instrukt", "model.name", "did you mean Qwen/Qwen2.5-7B-Instruct"),
        ("model=Qwen2.5-VL-7B-Instruct", "model.name", "a vision-language model"),
        ("model=./nope", "model.name", "no such folder; write the path that the nodes use"),
        ("data=nope.json", "data.train[0].path", "no such file"),
        ("data={train: /d.json, eval: [../nope.json]}", "data.eval[0].path", "no such file"),
        ("evaluate={data: nope.json}", "evaluate.data", "no such file"),
    ],
)  # fmt: skip
def test_what_is_missing_here_is_an_error(tmp_path: Path, sets: str, field: str, word: str) -> None:
    (found,) = problems(tmp_path, "", sets)
    assert f"{field}: " in found and word in found
