"""The command that evaluates a trained model, the same on every target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwen_job.job import Job
from qwen_job.job.evaluation import Suite
from qwen_job.plan import Plan
from qwen_job.run.folder import RunFolder

RUN = "{run}"  # in the words of a pod: its run folder


def evaluate_words(plan: Plan) -> list[str]:
    """Return the words after ``qwen-job`` that evaluate the job's run, empty for a job that does not."""
    wanted = plan.job.evaluate
    if wanted is None:
        return []
    words = ["evaluate", plan.job.output]
    # A job without a suite has data, which its loader checks.
    if data := wanted.data or _held_out(plan.job):
        words += ["--data", data, "--samples", str(wanted.samples), "--max-new-tokens", str(wanted.max_new_tokens)]
    words += _suite_words(wanted.suite) if wanted.suite else []
    return words if wanted.before else [*words, "--no-before"]


def _held_out(job: Job) -> str | None:
    """Return the conversations that the run holds out, None if it holds out none."""
    if job.data.eval:
        return job.data.eval[0].path
    return str(RunFolder(Path(job.output)).held_out) if job.data.eval_split else None


def pod_words(plan: Plan) -> list[str]:
    """Return the words after ``qwen-job evaluate RUN`` for a pod, which knows its run folder, maybe another, as RUN."""
    run = f"{plan.job.output}/"
    return [f"{RUN}/{word.removeprefix(run)}" if word.startswith(run) else word for word in evaluate_words(plan)[2:]]


def has_suite(options: Sequence[str]) -> bool:
    """Return whether options of ``qwen-job evaluate`` name a suite."""
    return "--task" in options or "--task-folder" in options


def check_words(plan: Plan) -> list[str]:
    """Return the words that load the tasks of a job's suite and their data, empty without a suite."""
    suite = plan.job.evaluate.suite if plan.job.evaluate else None
    return ["evaluate", "--check", *_suite_words(suite)] if suite else []


def _suite_words(suite: Suite) -> list[str]:
    words = [word for name in suite.tasks for word in ("--task", name)]
    given = {
        "--task-folder": suite.folder, "--limit": suite.limit, "--few-shot": suite.few_shot,
        "--batch-size": suite.batch_size, "--backend": None if suite.backend == "transformers" else suite.backend,
    }  # fmt: skip
    words += [word for option, value in given.items() if value is not None for word in (option, str(value))]
    words += [] if suite.chat_template else ["--no-chat-template"]
    return [*words, "--run-code"] if suite.run_code else words
