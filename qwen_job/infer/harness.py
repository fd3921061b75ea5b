"""lm-eval, called: a suite and a model folder -> ``Score`` objects. The only module that imports it.

It finds, prompts and measures. The model is ours, loaded without a folder's code (``load_native``), or vLLM's.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import statistics
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from qwen_job.errors import DataError, EnvironmentFault, ModelError, QwenJobError, UsageError
from qwen_job.facts.suites import HARNESS, INSTALL, groups_of, tasks_of
from qwen_job.infer.comparing import Score
from qwen_job.infer.suite import Suite
from qwen_job.models.completeness import check_folder
from qwen_job.text import did_you_mean

_SEED = 1234  # lm-eval's own, for few-shot examples
# Resamples for the error of a metric that is no mean; lm-eval's default of 100,000 takes minutes.
_RESAMPLES = 1000
_CPU_BATCH = 8
_MOST_BATCH = 64
_ALL_AT_ONCE = 1_000_000


def harness_version(suite: Suite) -> str:
    """Return ``lm-eval VERSION``, and vLLM's where the suite needs it.

    Raises:
        EnvironmentFault: one of them is not installed.
    """
    wanted = {HARNESS: (INSTALL, "evaluate.suite"), "vllm": ("pip install vllm", "evaluate.suite.backend")}
    found = []
    for package in (HARNESS, "vllm") if suite.backend == "vllm" else (HARNESS,):
        install, field = wanted[package]
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            raise EnvironmentFault(f"{field}: {package} is not installed for {sys.executable}: {install}") from None
    return ", ".join(found)


def load_tasks(suite: Suite) -> dict[str, Any]:
    """Return lm-eval's tasks and groups of a suite, their data loaded from its cache, the folder or a hub.

    Raises:
        EnvironmentFault: lm-eval is not installed.
        UsageError: it has no task of that name, or a task needs ``run_code`` or another package.
        DataError: a task's data cannot be loaded.
    """
    harness_version(suite)
    _settle()
    with _quiet_in(suite.folder):
        from lm_eval.tasks import TaskManager

        known = {*tasks_of(suite.folder), *groups_of(suite.folder)} if suite.folder else set()
        # lm-eval reads 14,000 files for its own tasks.
        manager = TaskManager(
            include_path=str(suite.folder) if suite.folder else None, include_defaults=not known.issuperset(suite.tasks)
        )
        loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        for name in suite.tasks:
            for kind, found in _load(manager, name).items():
                if kind == "tasks" and (twice := sorted(found.keys() & loaded[kind].keys())):
                    raise UsageError(f"evaluate.suite.tasks: {name}: has {twice[0]}, as another entry does: remove one")
                loaded[kind].update(found)
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) and not suite.run_code:
            raise UsageError(
                f"evaluate.suite.tasks: {name}: runs the model's answers as code: remove it, or set "
                "evaluate.suite.run_code: true where that does no harm"
            )
        _few_shot(task, suite.few_shot)
    return loaded


def _load(manager: Any, name: str) -> Mapping[str, Any]:
    field = f"evaluate.suite.tasks: {name}"
    if name not in manager.task_index:
        hint = did_you_mean(name, manager.all_tasks) or "; 'lm-eval ls tasks' lists all"
        raise UsageError(f"{field}: lm-eval has no such task{hint}")
    try:
        return manager.load([name])  # type: ignore[no-any-return]
    except (ModuleNotFoundError, ImportError) as error:
        raise UsageError(f"{field}: needs another package: {_first_line(error)}") from error
    except Exception as error:  # datasets, its readers and hubs raise their own kinds
        raise DataError(
            f"{field}: its data cannot be loaded: {_first_line(error)}; without internet access, fetch it on a machine "
            f"that has it and shares HF_HOME: qwen-job evaluate --check --task {name}"
        ) from error


def _few_shot(task: Any, wanted: int | None) -> None:
    """Set the number of examples before a question, as lm-eval does: a task that allows none keeps none."""
    own = task.get_config("num_fewshot")
    if own is None or (wanted is not None and own != 0):
        task.set_config(key="num_fewshot", value=wanted or 0)
    task.set_fewshot_seed(seed=_SEED)


def score_folder(folder: Path, suite: Suite) -> list[Score]:
    """Return the scores of a native model folder, in the order of tasks and metrics.

    Raises:
        QwenJobError: as :func:`load_tasks`.
        ModelError: the folder is incomplete, or has no chat template and the suite asks for it.
    """
    tasks = load_tasks(suite)
    folder = folder.absolute()  # a suite's folder becomes the current one
    check_folder(folder)
    with _quiet_in(suite.folder):
        from lm_eval.evaluator import evaluate

        model = _vllm(folder, suite) if suite.backend == "vllm" else _transformers(folder, suite)
        if suite.chat_template and not model.tokenizer.chat_template:
            raise ModelError(f"{folder}: has no chat template: set evaluate.suite.chat_template: false")
        if not sys.stderr.isatty():
            _draw_no_bars(model)
        try:
            results = evaluate(
                lm=model, task_dict=tasks, limit=suite.limit, bootstrap_iters=_RESAMPLES, log_samples=True,
                apply_chat_template=suite.chat_template, fewshot_as_multiturn=suite.chat_template,
                confirm_run_unsafe_code=suite.run_code,
            )  # fmt: skip
        except QwenJobError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # in a task's own templates and functions
            raise UsageError(
                f"evaluate.suite: lm-eval stopped: {type(error).__name__}: {_first_line(error)}"
            ) from error
        finally:
            # The next model needs the memory. Its bound methods are its own attributes, so it does not go by itself.
            del model
            gc.collect()
    assert results is not None  # one process
    return list(_scores(results))


def _transformers(folder: Path, suite: Suite) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    from qwen_job.infer.answer import device_and_dtype
    from qwen_job.models.loading import load_native

    transformers_logging.disable_progress_bar()
    device, dtype = device_and_dtype()
    model, _ = load_native(folder, dtype, "sdpa")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    batch = suite.batch_size or ("auto" if torch.cuda.is_available() else _CPU_BATCH)
    return HFLM(
        pretrained=model.to(device).eval(), tokenizer=tokenizer, batch_size=batch, max_batch_size=_MOST_BATCH,
        enable_thinking=False,
    )  # fmt: skip


def _vllm(folder: Path, suite: Suite) -> Any:
    from lm_eval.models.vllm_causallms import VLLM

    from qwen_job.infer.answer import device_and_dtype

    precision = str(device_and_dtype()[1]).removeprefix("torch.")
    # With "auto", vLLM draws a bar and divides by its seconds, which are 0 where bars are switched off.
    batch = suite.batch_size or _ALL_AT_ONCE
    try:
        return VLLM(pretrained=str(folder), dtype=precision, batch_size=batch, enable_thinking=False)
    except Exception as error:  # of its engine, its configuration and its kernels
        message = f"vllm does not load {folder}: {_first_line(error)}; the other backend is transformers"
        raise EnvironmentFault(f"evaluate.suite.backend: {message}") from error


def _draw_no_bars(model: Any) -> None:
    """Leave out the bars that a model draws whatever tqdm's variables say: they would fill a log file."""
    for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(model, name, functools.partial(getattr(model, name), disable_tqdm=True))


def _scores(results: Mapping[str, Any]) -> Iterator[Score]:
    samples, better = results.get("samples", {}), results.get("higher_is_better", {})
    counts = results.get("n-samples", {})
    for task, values in {**results["results"], **results.get("groups", {})}.items():
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            stderr = values.get(f"{metric}_stderr,{kind}")
            answers = _answers(samples.get(task, ()), metric, kind)
            same = answers and abs(statistics.fmean(answers.values()) - value) < 1e-9
            yield Score(
                task=task,
                metric=metric if kind == "none" else f"{metric}, {kind}",
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, (int, float)) else None,
                higher_is_better=better.get(task, {}).get(metric) is not False,
                samples=int(counts.get(task, {}).get("effective") or values.get("sample_len") or 0),
                few_shot=results.get("n-shot", {}).get(task),
                answers=answers if same else {},
            )  # fmt: skip


def _answers(samples: Any, metric: str, kind: str) -> dict[str, float]:
    """Return the metric's value for each question, empty unless all are numbers."""
    found = {f"{one['doc_id']}-{one['doc_hash'][:12]}": one.get(metric) for one in samples if one["filter"] == kind}
    numbers = {question: float(value) for question, value in found.items() if isinstance(value, (int, float))}
    return numbers if len(numbers) == len(found) else {}


def _settle() -> None:
    """Set what the harness's libraries read as they are imported: no hub where the user forbids it, no bars in logs."""
    if os.environ.get("QWEN_JOB_OFFLINE"):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # redirecting ours does not reach its processes
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # a hub that is not reached is one error, not ten warnings
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextlib.contextmanager
def _quiet_in(folder: Path | None) -> Iterator[None]:
    """Send what the harness prints to standard error, and start a task's relative paths in ``folder``."""
    before = Path.cwd()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if folder is not None:
        os.chdir(folder)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.chdir(before)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
