"""Every setting that may be written has its effect: the whole table is walked, and none is left out."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from qwen_job.errors import JobError, UsageError
from qwen_job.facts.train_settings import facts
from qwen_job.run.config import TrainConfig, check_training, parse_config
from qwen_job.train.arguments import Arguments, read_arguments, warmup_steps
from qwen_job.train.flag_sections import Hardware
from qwen_job.train.flags import IGNORED, config_from_flags
from tests.train import tiny

if TYPE_CHECKING:
    from qwen_job.train.batches import Loader

pytestmark = pytest.mark.train
H100 = Hardware("cuda", (9, 0), True)
CPU = Hardware("cpu", None, False)
BASE = "--model_name_or_path Qwen/Qwen-7B-Chat --data_path d.json --output_dir /nowhere/out --eval_data_path e.json "
EVALUATED = "--eval_strategy steps --eval_steps 5 "
# Every accepted name with another value than its default; what it does is shown in the tests that the comment names.
ACCEPTED: dict[str, Any] = {
    "data_seed": 0, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 4, "eval_delay": 3.0,
    "eval_on_start": True, "full_determinism": True, "log_level": "info", "log_level_replica": "info",
    "logging_first_step": True, "lr_scheduler_kwargs": {"num_cycles": 2}, "neftune_noise_alpha": 5.0,
    "per_device_eval_batch_size": 3, "project": "mine", "run_name": "second", "warmup_steps": 4.0,
    "trackio_bucket_id": "b", "trackio_space_id": "s", "trackio_static_space_id": "t",
    "dataloader_pin_memory": False, "torch_empty_cache_steps": 2, "tf32": True,
    "metric_for_best_model": "perplexity", "torch_compile_backend": "eager", "torch_compile_mode": "default",
}  # fmt: skip
# What transformers' TrainingArguments would do without the name, where ours differs.
OTHER_DEFAULTS = {
    "log_level",
    "metric_for_best_model",
    "per_device_eval_batch_size",
    "project",
    "warmup_steps",
    "lr_scheduler_kwargs",
}


def parsed(tmp_path: Path, **changes: Any) -> TrainConfig:
    """Return a run's settings with some changed, held-out rows and data workers."""
    base = {"data__eval_split": 0.2, "training__eval_steps": 5, "training__dataloader_num_workers": 1}
    values, _ = tiny.settings(tmp_path, **{**base, **changes})
    return parse_config(values, "train.yaml")


def arguments(tmp_path: Path, **changes: Any) -> Arguments:
    """Return the added arguments of such a run."""
    return read_arguments(parsed(tmp_path, **changes))[0]


def test_every_accepted_name_is_an_argument_and_none_else() -> None:
    assert set(ACCEPTED) == set(facts()["accepted"]) == {field.name for field in dataclasses.fields(Arguments)}


def test_the_table_says_what_each_accepted_name_does() -> None:
    silent = [name for name, fact in facts()["accepted"].items() if not fact.get("does")]
    assert not silent


def test_an_argument_left_out_is_what_it_is_in_transformers() -> None:
    from transformers import TrainingArguments

    theirs = TrainingArguments.__dataclass_fields__
    ours = {field.name: field.default for field in dataclasses.fields(Arguments) if field.name not in OTHER_DEFAULTS}
    assert ours == {name: theirs[name].default for name in ours}


@pytest.mark.parametrize("name", [name for name in ACCEPTED if facts()["accepted"][name].get("needs") is None])
def test_an_accepted_setting_is_read(name: str, tmp_path: Path) -> None:
    plain, changed = arguments(tmp_path), arguments(tmp_path, **{f"training__{name}": ACCEPTED[name]})
    assert getattr(changed, name) == ACCEPTED[name] != getattr(plain, name)


@pytest.mark.parametrize("need", ["workers", "evaluation", "trackio", "gpu"])
def test_an_accepted_setting_is_read_where_its_need_is_met(
    need: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_job.train.arguments.check_training", lambda _: None)  # of the GPU, there is none here
    names = [name for name in ACCEPTED if facts()["accepted"][name].get("needs") == need]
    changed = arguments(tmp_path, **{f"training__{name}": ACCEPTED[name] for name in names})
    assert {name: getattr(changed, name) for name in names} == {name: ACCEPTED[name] for name in names}


def test_an_old_name_is_translated_with_a_note(tmp_path: Path) -> None:
    config = parsed(tmp_path, training__per_gpu_eval_batch_size=3)
    found, notes = read_arguments(config)
    assert found.per_device_eval_batch_size == 3
    assert "per_device_eval_batch_size" in notes[0]


def test_the_optimizers_settings_reach_the_optimizer(tmp_path: Path) -> None:
    import torch

    from qwen_job.train.modeling import build_optimizer

    config = parsed(
        tmp_path,
        training__learning_rate=0.25,
        training__weight_decay=0.5,
        training__adam_beta1=0.5,
        training__adam_beta2=0.75,
        training__adam_epsilon=0.125,
    )
    decayed, plain = build_optimizer(torch.nn.Linear(3, 2), config, {}).param_groups
    assert (decayed["lr"], decayed["betas"], decayed["eps"]) == (0.25, (0.5, 0.75), 0.125)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"training__warmup_ratio": 0.05}, 5),
        ({"training__warmup_ratio": 0.0, "training__warmup_steps": 7.0}, 7),
        ({"training__warmup_ratio": 0.0, "training__warmup_steps": 0.25}, 25),
    ],
)
def test_the_warmup_is_a_share_or_a_number_of_steps(tmp_path: Path, changes: dict[str, Any], steps: int) -> None:
    config = parsed(tmp_path, **changes)
    assert warmup_steps(config, read_arguments(config)[0], 100) == steps


def loader(tmp_path: Path, *, rows: str = "training_rows", **changes: Any) -> Loader:
    """Return the training's or the evaluation's loader over eight rows."""
    import torch

    from qwen_job.train import setup
    from qwen_job.train.ranks import Ranks

    config = parsed(tmp_path, **changes)
    alone = Ranks(0, 1, torch.device("cpu"))
    found: Loader = getattr(setup, rows)(config, read_arguments(config)[0], list(range(8)), alone, 0)
    return found


def test_the_loaders_settings_reach_the_loader(tmp_path: Path) -> None:
    changed = loader(
        tmp_path,
        training__dataloader_prefetch_factor=4,
        training__dataloader_persistent_workers=True,
        training__dataloader_num_workers=2,
    )
    assert (changed.prefetch_factor, changed.persistent_workers, changed.num_workers) == (4, True, 2)
    plain = loader(tmp_path)
    assert (plain.prefetch_factor, plain.persistent_workers, plain.num_workers) == (2, False, 1)
    assert loader(tmp_path, rows="held_out_rows", training__per_device_eval_batch_size=3).sampler_of_steps.micro == 3


@pytest.mark.parametrize(("length", "micro", "rows"), [(512, 1, 8), (4096, 1, 4), (32768, 1, 1), (32768, 2, 2)])
def test_an_evaluation_step_has_fewer_rows_where_they_are_long(
    tmp_path: Path, length: int, micro: int, rows: int
) -> None:
    changes = {"data__max_length": length, "training__per_device_train_batch_size": micro}
    assert loader(tmp_path, rows="held_out_rows", **changes).sampler_of_steps.micro == rows
    written = {**changes, "training__per_device_eval_batch_size": 5}
    assert loader(tmp_path, rows="held_out_rows", **written).sampler_of_steps.micro == 5


def test_a_gpus_rows_are_pinned_unless_the_setting_says_no(tmp_path: Path) -> None:
    assert not loader(tmp_path).pin_memory
    assert loader(tmp_path, device="cuda").pin_memory
    assert not loader(tmp_path, device="cuda", training__dataloader_pin_memory=False).pin_memory


def test_a_seed_of_the_data_alone_orders_the_rows_even_when_it_is_0(tmp_path: Path) -> None:
    seeds: list[dict[str, Any]] = [{}, {"training__data_seed": 0}, {"training__data_seed": 2}]
    orders = [loader(tmp_path, seed=1, **seed).sampler_of_steps.order() for seed in seeds]
    assert orders[0] == loader(tmp_path, training__data_seed=1, seed=9).sampler_of_steps.order()
    assert len({tuple(order) for order in orders}) == 3


def test_full_determinism_chooses_deterministic_kernels() -> None:
    import subprocess
    import sys

    program = (
        "import torch; from qwen_job.train import setup; setup._seed(3, full_determinism=True); "
        "print(torch.are_deterministic_algorithms_enabled(), torch.initial_seed())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=tiny.environment(DS_ACCELERATOR="cpu"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split()[-2:] == ["True", "3"], done.stderr


def test_the_log_level_is_that_of_transformers_and_deepspeed(tmp_path: Path) -> None:
    from deepspeed.utils import logger
    from transformers.utils import logging

    from qwen_job.train.rendezvous import Place
    from qwen_job.train.setup import _set_log_level

    before = logging.get_verbosity(), logger.level
    given = arguments(tmp_path, training__log_level="info", training__log_level_replica="critical")
    try:
        for local_rank, level in ((0, 20), (1, 50)):
            _set_log_level(given, Place(local_rank, 2, local_rank, "localhost", 1))
            assert (logging.get_verbosity(), logger.level) == (level, level)
    finally:
        logging.set_verbosity(before[0])
        logger.setLevel(before[1])


@pytest.mark.parametrize("every", [None, 3])
def test_the_cache_is_emptied_every_so_many_steps(every: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from qwen_job.train.trainer import Trainer

    emptied: list[int] = []
    for step in range(1, 7):
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda step=step: emptied.append(step))
        fake: Any = SimpleNamespace(
            parts=SimpleNamespace(arguments=Arguments(torch_empty_cache_steps=every)),
            state=SimpleNamespace(global_step=step),
        )
        Trainer._empty_cache(fake)
    assert emptied == ([3, 6] if every else [])


def test_the_project_and_the_name_reach_the_trackers(tmp_path: Path) -> None:
    from qwen_job.train.trackers import _environment

    values, _ = tiny.settings(tmp_path, training__project="mine", training__run_name="second")
    found = _environment(parse_config(values, "train.yaml"), "id")
    assert {found[name] for name in ("WANDB_PROJECT", "SWANLAB_PROJ_NAME", "MLFLOW_EXPERIMENT_NAME")} == {"mine"}
    assert found["WANDB_NAME"] == "second"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"training__save_only_model": True}, "training.save_only_model"),
        ({"training__optim": "adafactor"}, "training.optim"),
        ({"training__lr_scheduler_type": "cosine_with_min_lr"}, "training.lr_scheduler_type"),
        ({"training__early_stopping_patience": 2}, "training.early_stopping_patience"),
        ({"training__load_best_model_at_end": True, "training__eval_steps": 5}, "training.load_best_model_at_end"),
        (
            {"training__load_best_model_at_end": True, "training__eval_steps": 5, "data__eval_split": 0.1,
             "training__save_steps": 0},
            "training.load_best_model_at_end",
        ),
        ({"precision": "fp16"}, "precision"),
    ],
)  # fmt: skip
def test_train_yaml_is_judged_before_anything_is_fetched(change: dict[str, Any], field: str, tmp_path: Path) -> None:
    values, _ = tiny.settings(tmp_path, **change)
    with pytest.raises(JobError) as caught:
        check_training(parse_config(values, "train.yaml"))
    assert [problem.field for problem in caught.value.problems] == [field]


@pytest.mark.parametrize(
    ("kind", "kwargs", "steps", "words"),
    [
        ("polynomial", {}, 1, "division by zero"),
        ("warmup_stable_decay", {"num_decay_steps": 100}, 50, "more than the run's 50"),
    ],
)
def test_a_schedule_that_fails_in_the_middle_fails_before_the_first_step(
    kind: str, kwargs: dict[str, Any], steps: int, words: str, tmp_path: Path
) -> None:
    from qwen_job.train.rate_schedule import check_schedule

    config = parsed(tmp_path, training__lr_scheduler_type=kind, training__lr_scheduler_kwargs=kwargs)
    given, _ = read_arguments(config)
    with pytest.raises(JobError, match=words):
        check_schedule(config, given, steps)
    check_schedule(config, given, 1000)


# The reference's command line: every accepted flag lands in the run's settings, every other one is refused.
def flagged(words: str, hardware: Hardware = H100) -> Any:
    """Return the settings of the reference's command line with ``words`` added."""
    return config_from_flags(shlex.split(BASE + words), hardware, 1)


@pytest.mark.parametrize("name", list(ACCEPTED))
def test_an_accepted_flag_is_in_the_runs_settings(name: str) -> None:
    value = ACCEPTED[name]
    text = '{"num_cycles": 2}' if isinstance(value, dict) else str(value)
    more = "--dataloader_num_workers 1 --report_to trackio --lr_scheduler_type cosine --torch_compile True "
    config, _, notes = flagged(f"{EVALUATED}{more}--{name} '{text}'")
    assert {"data_seed": None, **config.training.model_dump()}[name if name != "run_name" else "report_to"] is not None
    held = config.name if name == "run_name" else config.training.extra().get(name)
    assert held == value and not any(f"--{name} has no effect" in note for note in notes)


@pytest.mark.parametrize("table", ["fixed", "owned"])
def test_a_flag_of_another_value_is_refused_with_its_reason(table: str) -> None:
    other = {bool: "{not}", int: "0.5", str: "sorted", dict: '{{"use_reentrant": true}}'}
    own = {"eval_strategy", "save_strategy", "deepspeed", "output_dir", "use_cpu", "resume_from_checkpoint",
           "evaluation_strategy", "no_cuda"}  # fmt: skip
    for name, fact in facts()[table].items():
        if name in IGNORED or name in own:
            continue
        wrong = "x"
        if table == "fixed":
            wrong = other[type(fact["value"])].format(**{"not": not fact["value"]})
        with pytest.raises(UsageError, match=f"--{name} "):
            flagged(f"--{name} '{wrong}'")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--save_only_model True", "save_only_model can only be false"),
        ("--fp16 True", "on a CPU leave it out"),
        ("--resume_from_checkpoint out/checkpoint-5", "resumes by itself"),
        ("--lora_r 64", "lora_r is not offered"),
        ("--use_lora True", "fine-tunes all weights"),
        ("--optim adafactor", "AdamW"),
        ("--lr_scheduler_type cosine_with_min_lr", "min_lr_rate: 0.1"),
        ("--lr_scheduler_type cosin", "did you mean 'cosine'"),
        ("--lr_scheduler_kwargs nonsense", "wants a JSON object"),
        ("--metric_for_best_model rouge", "not one of loss"),
        ("--load_best_model_at_end True", "--eval_data_path"),
        (EVALUATED + "--save_strategy no --load_best_model_at_end True", "needs checkpoints"),
        ("--save_strategy best", "load_best_model_at_end"),
        ("--tf32 True", "compute capability 8.0"),
        ("--learning_rate nan", "finite"),
        ("--logging_steps 0.5", "whole number"),
        ("--warmup_ratio 0.1 --warmup_steps 3", "remove one"),
        ("--save_only_mdel True", "no such flag"),
    ],
)
def test_a_flag_that_cannot_be_had_gets_an_answer(words: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        flagged(words, CPU)
    assert says in str(caught.value) and "q_lora" not in str(caught.value)


def test_an_evaluation_without_held_out_rows_is_refused() -> None:
    words = shlex.split(BASE.replace("--eval_data_path e.json", EVALUATED))
    with pytest.raises(UsageError, match="needs --eval_data_path"):
        config_from_flags(words, CPU, 1)


def test_what_only_an_evaluation_would_use_is_dropped_with_a_note() -> None:
    config, _, notes = flagged("--evaluation_strategy no --per_device_eval_batch_size 1")
    assert "per_device_eval_batch_size" not in config.training.extra()
    assert any("--per_device_eval_batch_size has no effect" in note for note in notes)
    assert any("--eval_data_path has no effect" in note for note in notes)


def test_resuming_is_answered(tmp_path: Path) -> None:
    told = shlex.split(f"{BASE} --output_dir={tmp_path}".replace("--output_dir /nowhere/out ", ""))
    assert "resumes from the newest" in " ".join(config_from_flags([*told, "--resume_from_checkpoint"], CPU, 1)[2])
    config_from_flags([*told, "--resume_from_checkpoint", "False"], CPU, 1)
    (tmp_path / "checkpoints" / "step-4").mkdir(parents=True)
    with pytest.raises(UsageError, match="another --output_dir"):
        config_from_flags([*told, "--resume_from_checkpoint", "False"], CPU, 1)


@pytest.mark.slow
def test_a_run_by_the_references_flags_evaluates_and_saves_by_epoch(tmp_path: Path) -> None:
    """One run shows what the loop itself does with its settings: epochs, the best model, the first step, noise."""
    import json
    import subprocess
    import sys

    tiny.write_run(tmp_path / "spare")
    rows = json.loads((tmp_path / "data.json").read_text())
    (tmp_path / "data.json").write_text(json.dumps(rows[:8]))
    (tmp_path / "eval.json").write_text(json.dumps(rows[8:14]))
    words = (
        f"--model_name_or_path {tmp_path}/tiny.yaml --model_source random --data_path {tmp_path}/data.json "
        f"--eval_data_path {tmp_path}/eval.json --output_dir {tmp_path}/out --model_max_length 128 "
        "--evaluation_strategy epoch --save_strategy epoch --save_total_limit 1 --load_best_model_at_end True "
        "--early_stopping_patience 2 --num_train_epochs 40 --learning_rate 0.1 --gradient_accumulation_steps 2 "
        "--per_device_train_batch_size 2 --eval_on_start True --eval_delay 2 --logging_steps 1000 "
        "--logging_first_step True --report_to tensorboard --neftune_noise_alpha 5 --lr_scheduler_type polynomial "
        "--lr_scheduler_kwargs '{\"power\": 2.0}' --project mine --fp16 False --tf32 False"
    )
    done = subprocess.run(
        [sys.executable, "-m", "qwen_job.train", *shlex.split(words)],
        env=tiny.environment(QWEN_JOB_CACHE=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    out = tmp_path / "out"
    assert done.returncode == 0, done.stdout + done.stderr
    held_out = {line["step"]: line["loss"] for line in tiny.metrics(out, "eval")}
    assert list(held_out)[:3] == [0, 4, 6]  # before the first step, then by epochs of two steps, the first left out
    best = min((step for step in held_out if step), key=lambda step: held_out[step])
    last = tiny.metrics(out, "step")[-1]["step"]
    assert last == best + 4 < 80, "two epochs without a better loss end the run"
    assert f"taking the weights of step-{best}" in done.stderr
    assert {path.name for path in (out / "checkpoints").glob("step-*")} == {f"step-{best}", f"step-{last}"}
    rates = [line["learning_rate"] for line in tiny.metrics(out, "step")]
    assert rates[2] == pytest.approx(0.1 * (1 - 2 / 80) ** 2, rel=1e-3)
    assert _logged(out) == [1]


def _logged(run: Path) -> list[int]:
    """Return the steps whose loss TensorBoard got."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    return [item.step for item in events.Scalars("train/loss")]


@pytest.mark.parametrize(("name", "older"), [("Qwen/Qwen-1_8B-Chat", True), ("Qwen/Qwen2.5-0.5B-Instruct", False)])
def test_rows_longer_than_the_models_are_warned_of(name: str, older: bool, tmp_path: Path) -> None:
    """The plan and the run both say it, and that Qwen-1's NTK and logn are not used."""
    from qwen_job.train.export import _length_note
    from tests.jobs import plan

    sets = (f"model.name={name}", "train.model_max_length=40000", "cluster.gpus_per_node=8")
    planned = [line for line in plan(tmp_path, "", *sets).warnings if line.startswith("train.model_max_length")]
    values, _ = tiny.settings(tmp_path, data__max_length=40000, model__name=name, model__source="modelscope")
    model = SimpleNamespace(config=SimpleNamespace(to_dict=lambda: {"max_position_embeddings": 32768}))
    noted = _length_note(model, parse_config(values, "train.yaml"))
    assert len(planned) == len(noted) == 1
    assert ("model.rope_scaling: 5 (YaRN" if older else "model.rope_scaling: 2 (YaRN") in planned[0]
    assert ["NTK" in line for line in (*planned, *noted)] == [older, older]
    values["data"]["max_length"] = 32768
    assert _length_note(model, parse_config(values, "train.yaml")) == []
