"""train.yaml: every key, and readable by the training's own reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_job.errors import JobError
from qwen_job.job import load_job
from qwen_job.plan import make_plan
from qwen_job.plan.train_config import train_config
from qwen_job.render.configs import config_files
from qwen_job.run.config import TrainConfig, load_config, parse_config, to_values
from qwen_job.run.sections import DataSpec, Guards, ModelSpec, Planned, Section, Stop, Training, plain
from tests.jobs import FIVE_LINES, pinned_plan, plan, problems, write

# What the trainer may be told and a job does not say: steps are what a job counts in.
NOT_OF_A_JOB = {"eval_strategy", "save_strategy"}


def test_every_key_is_there(tmp_path: Path) -> None:
    config = to_values(train_config(plan(tmp_path)))
    assert set(config) == set(TrainConfig.model_fields)
    assert set(Training.model_fields) - set(config["training"]) == NOT_OF_A_JOB


@pytest.mark.parametrize("section", [ModelSpec, DataSpec, Stop, Guards, Planned])
def test_every_key_of_a_section_is_there(tmp_path: Path, section: type[Section]) -> None:
    config = train_config(plan(tmp_path))
    [values] = [plain(value, only_set=True) for _, value in config if isinstance(value, section)]
    assert list(values) == list(section.model_fields)


def test_what_was_left_to_the_plan_is_decided(tmp_path: Path) -> None:
    config = train_config(plan(tmp_path))
    assert "auto" not in (config.fused_loss, config.attention)


def test_rows_over_32k_begin_with_the_longest_unless_the_job_says_otherwise(tmp_path: Path) -> None:
    def decided(text: str) -> tuple[bool, dict[str, bool]]:
        made = plan(tmp_path, f"train: {{{text}}}\n")
        noted = {one.field: one.value for one in made.decisions if one.field == "train.longest_first"}
        return train_config(made).training.longest_first, noted

    assert decided("model_max_length: 32768") == (False, {})
    assert decided("model_max_length: 32769") == (True, {"train.longest_first": True})
    assert decided("model_max_length: 32769, longest_first: false") == (False, {"train.longest_first": False})


def test_it_holds_the_decided_numbers_and_the_user_s_extras(tmp_path: Path) -> None:
    made = plan(tmp_path, "train: {run_name: first, learning_rate: 3e-6}\nslurm: {time: 1h}\nretry: {grace: 1m}\n")
    config = train_config(made)
    assert config.training.extra() == {"run_name": "first"}
    assert config.training.learning_rate == 3e-6
    assert config.training.per_device_train_batch_size == made.batch.micro_batch_size
    assert plain(config.stop) == {"grace_seconds": 60}


def test_estimates_are_null_where_nothing_is_known(tmp_path: Path) -> None:
    assert set(plain(train_config(pinned_plan(tmp_path)).plan).values()) == {None}


def test_what_the_plan_builds_unvalidated_is_valid_and_read_back_the_same(tmp_path: Path) -> None:
    made = train_config(plan(tmp_path))
    assert parse_config(to_values(made), "train.yaml") == made


def test_the_training_reads_it(tmp_path: Path) -> None:
    made = plan(tmp_path)
    for name, text in config_files(made).items():
        (tmp_path / name).write_text(text, "utf-8")
    config, deepspeed = load_config(tmp_path / "train.yaml")
    assert config == train_config(made)
    assert deepspeed == made.deepspeed_config


def test_the_balance_of_experts_reaches_the_trainer_and_a_dense_model_refuses_it(tmp_path: Path) -> None:
    field = "train.router_aux_loss_coef=0.001"
    mixture = plan(tmp_path, "", "model=Qwen/Qwen3-30B-A3B", field, "cluster.nodes=8", "cluster.gpus_per_node=8")
    assert train_config(mixture).router_aux_loss_coef == 0.001
    assert mixture.torch_compile is False
    (found,) = problems(tmp_path, "train: {router_aux_loss_coef: 0.001}\n")
    assert "train.router_aux_loss_coef: Qwen/Qwen-1_8B-Chat has no experts; remove the field" in found


def test_layers_of_a_mixture_are_not_compiled(tmp_path: Path) -> None:
    more = "train: {torch_compile: true}\n"
    nodes = "cluster: {gpu: A100-80G, gpus_per_node: 8, nodes: 8}\n"
    base = FIVE_LINES.replace("Qwen/Qwen-1_8B-Chat", "Qwen/Qwen3-30B-A3B").rpartition("cluster")[0] + nodes
    path = write(tmp_path, more, base=base)
    with pytest.raises(JobError, match=r"train\.torch_compile: true: layers are not compiled: a mixture of experts"):
        make_plan(load_job([path]))
