"""A plan and a render never disagree about what is valid: all examples, all listed mistakes, all targets."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from qwen_job.cli import cli
from qwen_job.cli.job_options import TARGETS
from qwen_job.errors import JobError
from qwen_job.resources import resource
from tests.job import test_mistakes as mistakes
from tests.jobs import FIVE_LINES, write

EXAMPLES = sorted(resource("configs", "jobs").glob("*.yaml"))
WRITTEN = (*mistakes.TWO_READINGS, *mistakes.MISPLACED, *mistakes.INDENTED)
# Valid for the plan alone, and refused when a target's files are written; or accepted.
TEXTS = [
    "",
    "env: {WANDB_API_KEY: abcdefgh}",
    "env: {HF_TOKEN: hf_abcdefghijklmnopqrstuvwxyz0123456789}",
    "slurm: {setup: [export WANDB_API_KEY=abcdefgh]}",
    "slurm: {sbatch: {export: 'HF_TOKEN=abc'}}",
    "slurm: {sbatch: {array: 0-3}}",
    "slurm: {chain: 2, requeue: true}",
    "slurm: {modules: [cuda/12]}\ncontainer: {runtime: docker}\nimage: a",
    "container: {runtime: pyxis}",
    "container: {runtime: pyxis, image: a, mounts: ['/a:/b:rw:x']}",
    "kubernetes: {namespace: ml}",
    "kubernetes: {volumes: [{name: a, mount_path: /data, pvc: a}]}\nimage: a",
    "kubernetes: {volumes: [{name: a, mount_path: /, pvc: a}]}\nimage: a",
    "hostfile: {hosts: 'gpu[1-3]'}",
    "hostfile: {hosts: gpu1}",
    "hostfile: {hosts: gpu1, python: ~/bin/python, ssh_options: [-l, bob]}",
    "hostfile: {hosts: ./nope}",
    "evaluate: {}",
    "evaluate: {data: /a.json}",
    "sweep: {train.seed: [1, 2]}",
    "sweep: {env.API_KEY: [secretvalue, othersecret]}",
    "sweep: {slurm.time: [1h, 2h]}",
    "template_dirs: [/nope]",
    "train: {global_batch_size: 3}",
    "notify: {kind: slack, url: 'https://hooks.slack.com/services/T0/B0/abcdefghijkl'}",
]  # fmt: skip


def accepted(job: Path, *words: str) -> bool:
    result = CliRunner().invoke(cli, [*words[:1], str(job), *words[1:]])
    assert result.exit_code == 0 or isinstance(result.exception, JobError), result.output
    return result.exit_code == 0


def of(folder: Path, text: str) -> Path:
    """Write the five lines and ``text``, which replaces the line of its field."""
    base = "".join(line for line in FIVE_LINES.splitlines(True) if line.partition(":")[0] != text.partition(":")[0])
    return write(folder, text, base=base)


def agree(job: Path, target: str) -> bool:
    rendered = accepted(job, "render", "-t", target, "-o", str(job.parent / target), "--force")
    assert accepted(job, "plan", "-t", target) == rendered, f"{target}: render {'accepts' if rendered else 'refuses'}"
    return rendered


@pytest.mark.parametrize("text", TEXTS)
def test_a_plan_for_a_target_accepts_what_its_render_accepts(tmp_path: Path, text: str) -> None:
    job = of(tmp_path, text)
    found = [agree(job, target) for target in TARGETS]
    if not any(found):
        assert not accepted(job, "plan")


@pytest.mark.parametrize("job", EXAMPLES, ids=lambda path: path.stem)
def test_plan_and_render_agree_about_every_example(tmp_path: Path, job: Path) -> None:
    assert accepted(job, "plan")
    for target in TARGETS:
        rendered = accepted(job, "render", "-t", target, "-o", str(tmp_path / target))
        assert accepted(job, "plan", "-t", target) == rendered


@pytest.mark.parametrize(
    "text", sorted({text for text, *_ in (*mistakes.TWO_READINGS, *mistakes.MISPLACED, *mistakes.INDENTED)})
)
def test_no_listed_mistake_passes_the_plan_or_a_render(tmp_path: Path, text: str) -> None:
    job = of(tmp_path, text)
    assert not accepted(job, "plan") and not accepted(job, "render", "-t", "slurm")


@pytest.mark.parametrize("sets", sorted({sets for sets, *_ in (*mistakes.MISSING_HERE, *mistakes.UNKNOWN)}))
def test_no_listed_mistake_on_the_command_line_passes_the_plan_or_a_render(tmp_path: Path, sets: str) -> None:
    job = write(tmp_path)
    assert not accepted(job, "plan", "--set", sets) and not accepted(job, "render", "-t", "slurm", "--set", sets)


def test_a_target_that_would_refuse_the_job_is_warned_of_where_another_accepts_it(tmp_path: Path) -> None:
    job = write(tmp_path, "slurm: {partition: p}\nkubernetes: {namespace: ml}\n")
    result = CliRunner().invoke(cli, ["plan", str(job)])
    assert result.exit_code == 0
    assert "warning: kubernetes.volumes: kubernetes refuses the job: " in result.stderr


def test_a_secret_is_refused_by_the_plan_with_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["plan", str(write(tmp_path, "env: {WANDB_API_KEY: abcdefgh}"))])
    assert (
        isinstance(result.exception, JobError)
        and str(result.exception).count("env.WANDB_API_KEY: looks like a secret") == 1
    )
    assert "export WANDB_API_KEY in the shell that submits the job" in str(result.exception)
