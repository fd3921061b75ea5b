"""The tables of settings against transformers' own, and what a job may write of them."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

from qwen_job.facts.train_settings import Circumstances, conflicts, facts, fault, schedulers
from qwen_job.job.model import Train
from tests.jobs import problems as faults

pytestmark = pytest.mark.train
# Names of older versions and of the reference's finetune.py, and our own; transformers 5 has none of them.
NOT_THEIRS = {
    "do_train", "evaluation_strategy", "group_by_length", "lazy_preprocess", "logging_dir", "no_cuda",
    "overwrite_output_dir", "q_lora", "save_safetensors", "use_lora",
}  # fmt: skip
OURS = {
    "activation_offloading", "attention", "early_stopping_patience", "expert_parallel_size", "export", "fused_loss",
    "global_batch_size", "hang_seconds", "longest_first", "loss_spike_factor", "memory_save_steps",
    "model_max_length", "on_nan", "resume", "router_aux_loss_coef", "sequence_parallel_size", "skip_rows", "tiled_mlp",
}  # fmt: skip
GIVEN = Circumstances(evaluates=True, on_cpu=False, ampere=True)
DEFAULTS = {"learning_rate": 1e-3, "lr_scheduler_type": "linear"}
# A value of each key that changes the curve, or is at least taken.
KEYS: dict[str, Any] = {
    "num_cycles": 2, "lr_end": 1e-4, "power": 2.0, "timescale": 7, "mode": "min", "factor": 0.5, "patience": 1,
    "threshold": 0.1, "threshold_mode": "abs", "cooldown": 1, "min_lr": 1e-5, "eps": 1e-9, "min_lr_rate": 0.2,
    "warmup_lr_rate": 0.1, "num_decay_steps": 4, "num_stable_steps": 3, "warmup_type": "cosine",
    "decay_type": "1-sqrt", "min_lr_ratio": 0.1, "warmup": 2, "max_lr": 0.1, "verbose": False, "smooth": True,
    "window_size": 3, "reset_start": 9,
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    from transformers import TrainingArguments

    return {field.name: field for field in dataclasses.fields(TrainingArguments)}


def test_every_name_of_theirs_stands_in_exactly_one_table(theirs: dict[str, Any]) -> None:
    tables = [*facts()["accepted"], *facts()["fixed"], *facts()["renamed"], *facts()["owned"], *Train.model_fields]
    assert len(tables) == len(set(tables))
    assert set(theirs) <= set(tables)
    assert set(tables) - set(theirs) <= NOT_THEIRS | OURS | {"warmup_ratio"} | set(facts()["renamed"])


def test_every_accepted_name_is_of_their_type(theirs: dict[str, Any]) -> None:
    for name, fact in facts()["accepted"].items():
        assert fact.get("kind", "str") in str(theirs[name].type), name


def test_what_is_fixed_is_what_they_do_by_default_or_what_we_always_do(theirs: dict[str, Any]) -> None:
    ours = {"activation_checkpointing_kwargs", "ddp_find_unused_parameters", "prediction_loss_only"}
    for name in set(facts()["fixed"]) - ours - {"greater_is_better"}:
        assert theirs[name].default == facts()["fixed"][name]["value"], name


def test_every_new_name_is_one_of_ours() -> None:
    known = {*Train.model_fields, *facts()["accepted"], *facts()["fixed"]}
    assert all(new.partition(":")[0] in known for new in facts()["renamed"].values())


@pytest.mark.parametrize("table", ["fixed", "owned", "renamed"])
def test_what_is_not_accepted_is_refused_with_its_reason(table: str, tmp_path: Path) -> None:
    names = list(facts()[table])
    found = faults(tmp_path, "", *(f"train.{name}=other" for name in names))
    for name in names:
        fact = facts()[table][name]
        reason = fact["reason"] if table == "fixed" else fact
        assert any(f"train.{name}: " in line and reason in line for line in found), name


def test_the_one_value_of_what_is_fixed_may_be_written() -> None:
    assert [name for name, fact in facts()["fixed"].items() if fault(name, fact["value"], ())] == []
    assert fault("label_smoothing_factor", False, ()) and fault("save_only_model", 0, ())


def test_the_schedulers_keys_are_those_of_transformers() -> None:
    from torch.optim.lr_scheduler import ReduceLROnPlateau
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR
    from transformers.trainer_utils import SchedulerType

    assert set(schedulers()) == {kind.value for kind in SchedulerType}
    # transformers hands these none of the keys.
    ignored = {"constant", "constant_with_warmup"}
    classes = {"reduce_lr_on_plateau": ReduceLROnPlateau, "greedy": GreedyLR}
    not_ours = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "self"}
    for kind, takes in schedulers().items():
        function = classes.get(kind, TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(kind)])
        names = set(inspect.signature(function).parameters) - not_ours  # type: ignore[arg-type]
        assert set(takes.get("keys", {})) == (set() if kind in ignored else names), kind


@pytest.mark.filterwarnings("ignore:Both num_training_steps")
@pytest.mark.parametrize("kind", list(schedulers()))
def test_a_schedule_is_refused_here_or_built_by_transformers(kind: str) -> None:
    """Every key by itself, and none at all: what the table takes transformers builds, and its needs are real."""
    takes = schedulers()[kind]
    needed = dict(list(takes.get("needs", {}).items())[:1])
    for key in [None, *takes.get("keys", {})]:
        kwargs = {} if key is None else {key: KEYS[key]}
        for extra in [{}, {name: value for name, value in needed.items() if not set(takes["needs"]) & set(kwargs)}]:
            values = {**DEFAULTS, "lr_scheduler_type": kind, "lr_scheduler_kwargs": {**kwargs, **extra} or None}
            refused = conflicts(values, [], GIVEN)
            built = _rates(kind, {**kwargs, **extra})
            assert refused or built is not None
            # transformers has a default for greedy's least rate, which is far above usual learning rates.
            assert not refused or built is None or kind == "greedy", refused


def _rates(kind: str, kwargs: dict[str, Any]) -> list[float] | None:
    import torch
    from transformers.optimization import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=DEFAULTS["learning_rate"])
    try:
        schedule: Any = get_scheduler(kind, optimizer, 2, 10, kwargs)
    except (TypeError, ValueError):
        return None
    curves = getattr(schedule, "lr_lambdas", [lambda _: 1.0])
    return [curves[0](step) for step in range(11)]


@pytest.mark.parametrize(
    ("lines", "field", "words"),
    [
        ("{lr_scheduler_type: cosine_with_min_lr}", "lr_scheduler_type", "min_lr_rate: 0.1"),
        ("{lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {}}", "lr_scheduler_kwargs", "min_lr_rate: 0.1"),
        ("{lr_scheduler_type: warmup_stable_decay}", "lr_scheduler_type", "num_decay_steps: 100"),
        (
            "{lr_scheduler_type: warmup_stable_decay, lr_scheduler_kwargs: {num_decay_steps: ten}}",
            "lr_scheduler_kwargs.num_decay_steps",
            "whole number",
        ),
        (
            "{lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr: 1e-6, min_lr_rate: 0.1}}",
            "lr_scheduler_kwargs",
            "cannot be combined",
        ),
        (
            "{lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr: 0.1}}",
            "lr_scheduler_kwargs.min_lr",
            "below learning_rate",
        ),
        ("{lr_scheduler_type: polynomial, learning_rate: 1e-8}", "lr_scheduler_kwargs.lr_end", "below learning_rate"),
        ("{lr_scheduler_kwargs: {min_lr: 1e-6}}", "lr_scheduler_kwargs.min_lr", "not a setting of cosine"),
        ("{lr_scheduler_type: reduce_lr_on_plateau}", "lr_scheduler_type", "held-out rows"),
        ("{lr_scheduler_type: constant, warmup_ratio: 0.1}", "warmup_ratio", "constant_with_warmup"),
        ("{warmup_ratio: 0.1, warmup_steps: 10}", "warmup_steps", "remove one"),
        ("{metric_for_best_model: rouge}", "metric_for_best_model", "not one of loss"),
        ("{metric_for_best_model: loss}", "metric_for_best_model", "held-out rows"),
        ("{eval_steps: 5}", "eval_steps", "held-out rows"),
        ("{dataloader_num_workers: 0, dataloader_prefetch_factor: 4}", "dataloader_prefetch_factor", "data workers"),
        ("{torch_compile_backend: eager}", "torch_compile_backend", "torch_compile: true"),
        ("{torch_empty_cache_steps: 0}", "torch_empty_cache_steps", "at least 1"),
        ("{log_level: loud}", "log_level", "not one of"),
        ("{trackio_space_id: me/space}", "trackio_space_id", "trackio in report_to"),
        ("{max_steps: 0}", "max_steps", "1 or more"),
        ("{seed: 4294967296}", "seed", "less than 4294967296"),
        ("{lora_r: 64}", "lora_r", "all weights"),
    ],
)
def test_what_would_fail_on_the_nodes_or_do_nothing_is_refused(
    lines: str, field: str, words: str, tmp_path: Path
) -> None:
    found = faults(tmp_path, f"train: {lines}\n")
    assert len(found) == 1 and f"train.{field}: " in found[0] and words in found[0], found


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("tf32=true", "compute capability 8.0"),
        ("dataloader_pin_memory=true", "no effect on a CPU"),
        ("torch_empty_cache_steps=5", "no effect on a CPU"),
    ],
)
def test_what_a_device_cannot_do_is_refused_by_the_plan(setting: str, words: str, tmp_path: Path) -> None:
    from qwen_job.errors import JobError
    from tests.jobs import plan

    with pytest.raises(JobError) as caught:
        plan(tmp_path, "", "cluster.gpu=CPU", f"train.{setting}")
    assert [problem.field for problem in caught.value.problems] == [f"train.{setting.partition('=')[0]}"]
    assert words in caught.value.problems[0].message
