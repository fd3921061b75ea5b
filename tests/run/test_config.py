"""train.yaml and deepspeed.json: read strictly, resolved completely."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from qwen_job.errors import JobError
from qwen_job.facts.deepspeed_keys import KNOWN
from qwen_job.job.model import Reporter, Scheduler
from qwen_job.run.config import load_config, parse_config, save_config
from qwen_job.train.deepspeed_config import offloads_optimizer, resolve, zero_stage
from qwen_job.train.settings_diff import changes_since, settings_text
from tests.train import tiny


def config(**changes: Any) -> Any:
    values, _ = tiny.settings(Path("/runs/tiny"), **changes)
    return parse_config(values, "train.yaml")


def test_a_run_folder_is_read_back_as_written(tmp_path: Path) -> None:
    path = tiny.write_run(tmp_path / "run")
    first, deepspeed = load_config(path)
    save_config(first, deepspeed, tmp_path / "again")
    assert load_config(tmp_path / "again" / "train.yaml") == (first, deepspeed)


def test_unknown_keys_are_refused_with_their_place_all_at_once() -> None:
    values, _ = tiny.settings(Path("/runs/tiny"), guards__on_nan="explode")
    values["colour"] = "red"
    with pytest.raises(JobError) as caught:
        parse_config(values, "train.yaml")
    assert [problem.field for problem in caught.value.problems] == ["guards.on_nan", "colour"]


@pytest.mark.parametrize("text", ["", "- a list", "a: [unclosed", "\x00"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tiny.write_run(tmp_path / "run")
    path.write_text(text)
    with pytest.raises(JobError):
        load_config(path)


def test_a_missing_deepspeed_json_is_named(tmp_path: Path) -> None:
    path = tiny.write_run(tmp_path / "run")
    path.with_name("deepspeed.json").unlink()
    with pytest.raises(JobError, match=r"deepspeed\.json: cannot be read"):
        load_config(path)


def test_auto_is_resolved_and_foreign_blocks_go_with_a_reason() -> None:
    given = {
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "scheduler": {"type": "WarmupLR", "params": {}},
        "optimizer": {"type": "AdamW"},
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"},
    }
    result, notes = resolve(config(), given, "ds.json")
    assert "auto" not in str(result) and "scheduler" not in result and "optimizer" not in result
    assert result["train_batch_size"] == 4 and result["bf16"] == {"enabled": False}
    assert result["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert len(notes) == 2 and "WarmupLR" in notes[0]


@pytest.mark.parametrize(("given", "enabled"), [({}, False), ({"timers": {"throughput": {"enabled": True}}}, True)])
def test_deepspeed_waits_for_the_gpu_to_time_it_only_if_asked_to(given: dict[str, Any], enabled: bool) -> None:
    result, _ = resolve(config(), given, "ds.json")
    assert result["timers"] == {"throughput": {"enabled": enabled}}


def test_a_contradiction_is_named() -> None:
    given = {"train_batch_size": 5, "fp16": {"enabled": True}}
    with pytest.raises(JobError) as caught:
        resolve(config(), given, "ds.json")
    assert [problem.field for problem in caught.value.problems] == ["train_batch_size", "fp16.enabled"]


def test_an_auto_that_nothing_fills_is_refused() -> None:
    with pytest.raises(JobError, match=r"zero_optimization\.offload_param\.buffer_count"):
        resolve(config(), {"zero_optimization": {"offload_param": {"buffer_count": "auto"}}}, "ds.json")


def test_stage_and_offload_are_read() -> None:
    assert zero_stage({}) == 0
    assert zero_stage({"zero_optimization": {"stage": 3}}) == 3
    assert offloads_optimizer({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}})
    assert not offloads_optimizer({"zero_optimization": {"offload_optimizer": {"device": "none"}}})


def test_settings_mounted_elsewhere_are_kept_in_the_run(tmp_path: Path) -> None:
    from qwen_job.run.config import keep_settings

    mounted, run = tmp_path / "etc", tmp_path / "run"
    mounted.mkdir()
    (mounted / "train.yaml").write_text("version: 1\n")
    keep_settings(mounted, run)
    keep_settings(run, run)
    assert [path.name for path in run.iterdir()] == ["train.yaml"]
    assert (run / "train.yaml").read_text() == "version: 1\n"


def test_the_list_of_a_sweep_s_runs_goes_into_the_folder_above(tmp_path: Path) -> None:
    from qwen_job.run.config import keep_settings

    mounted = tmp_path / "etc"
    mounted.mkdir()
    (mounted / "train.yaml").write_text("version: 1\n")
    (mounted / "sweep.json").write_text('{"runs": [{"folder": "seed=1", "values": {}}]}')
    keep_settings(mounted, tmp_path / "other" / "release")
    keep_settings(mounted, tmp_path / "out" / "seed=1")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["seed=1", "sweep.json"]
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["release"], "a folder that is not the sweep's"


def test_the_job_knows_the_names_that_the_trainer_knows() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.trainer_utils import SchedulerType

    assert set(get_args(Scheduler)) == {item.value for item in SchedulerType}
    assert set(get_args(Reporter)) == {*INTEGRATION_TO_CALLBACK, "all", "none"}


def test_changes_since_a_checkpoint_are_told_by_field(tmp_path: Path) -> None:
    values, _ = tiny.settings(tmp_path)
    before = parse_config(values, "train.yaml")
    (tmp_path / "settings.json").write_text(settings_text(before))
    assert changes_since(tmp_path, before) == []
    values, _ = tiny.settings(tmp_path, seed=8, training__save_steps=9, training__learning_rate=0.1, world_size=4)
    told = changes_since(tmp_path, parse_config(values, "train.yaml"))
    assert told == ["global_batch_size 4 -> 8", "seed 7 -> 8", "training.learning_rate 0.005 -> 0.1"]
    assert changes_since(tmp_path / "nothing", before) == []


def test_a_misspelt_key_of_deepspeed_s_json_is_refused_and_an_unknown_one_is_noted() -> None:
    with pytest.raises(JobError, match=r"ds\.json: zero_optimisation: .*zero_optimization"):
        resolve(config(), {"zero_optimisation": {"stage": 3}}, "ds.json")
    notes = resolve(config(), {"my_own_key": 1}, "ds.json")[1]
    assert [note.split(": ")[1] for note in notes] == ["my_own_key", "has no zero_optimization"]


def test_every_key_that_deepspeed_reads_is_known() -> None:
    import re

    import deepspeed.runtime.constants as constants  # type: ignore[import-untyped]

    source = Path(constants.__file__).with_name("config.py").read_text("utf-8")
    names = re.findall(r"get_(?:scalar|dict|list)_param\(\s*param_dict,\s*([A-Z_]+)", source)
    read = {getattr(constants, name) for name in names if hasattr(constants, name)}
    assert len(read) > 10
    assert not read - set(KNOWN)
