"""The generation settings of a trained model: every stop, no limits, and nothing that transformers refuses."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qwen_job.errors import ModelError
from qwen_job.models.generation import exported, pad_of, stops_of

SPECIAL = {"<|endoftext|>": 10, "<|im_start|>": 11, "<|im_end|>": 12}
# Values of every setting that a published or edited file has, some of them wrong.
VALUES: dict[str, list[Any]] = {
    "do_sample": [True, False, None], "temperature": [0.7, 1.0, "hot"], "top_p": [0.8, 1.0], "top_k": [0, 20, 50],
    "min_p": [0.1], "typical_p": [0.9], "epsilon_cutoff": [0.1], "eta_cutoff": [0.2], "num_beams": [1, 4, None],
    "length_penalty": [1.0, 2.0], "early_stopping": [True, False, "never", "soon"],
    "num_return_sequences": [1, 3, 9], "repetition_penalty": [1.1], "max_new_tokens": [512, -1], "max_length": [20],
    "output_scores": [True], "output_attentions": [True], "return_dict_in_generate": [True, False],
    "cache_implementation": ["static", "none such"], "chat_format": ["chatml"], "max_window_size": [6144],
    "logits_processor": [[]], "suppress_tokens": [[3]], "forced_eos_token_id": [3], "eos_token_id": [10, [10, 12]],
    "pad_token_id": [-1, 10], "no_repeat_ngram_size": [2], "compile_config": [{"a": 1}],
}  # fmt: skip


def folder_of(
    folder: Path, generation: dict[str, Any] | None = None, config: dict[str, Any] | None = None, **tokenizer: Any
) -> Path:
    """Write the small files of a model."""
    added = [{"id": number, "content": token} for token, number in SPECIAL.items()]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "config.json").write_text(json.dumps({"vocab_size": 100, **(config or {})}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.mark.parametrize(
    ("generation", "config", "stops"),
    [
        (None, {}, [12, 11, 10]),
        ({"eos_token_id": 10}, {}, [12, 11, 10]),
        ({"eos_token_id": [12, 42]}, {"eos_token_id": 43}, [12, 11, 10, 42, 43]),
        ({"eos_token_id": 100}, {"eos_token_id": -1}, [12, 11, 10]),
    ],
)
def test_the_stops_are_ours_and_the_sources(
    generation: dict[str, Any] | None, config: dict[str, Any], stops: list[int], tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, generation, config, eos_token={"content": "<|endoftext|>"})
    assert stops_of(folder) == stops == exported(folder).values["eos_token_id"]
    assert pad_of(folder) == 10 == exported(folder).values["pad_token_id"]


def test_limits_are_left_out_with_a_note_and_the_rest_is_kept(tmp_path: Path) -> None:
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    found = exported(folder_of(tmp_path, {**sampling, "max_new_tokens": 512, "max_length": 4096}))
    assert {key: found.values[key] for key in sampling} == sampling
    assert not {"max_new_tokens", "max_length"} & set(found.values)
    assert [note.split(": ")[1] for note in found.notes] == ["max_new_tokens", "max_length"]


def test_a_stop_that_no_token_has_is_left_out_with_a_note(tmp_path: Path) -> None:
    found = exported(folder_of(tmp_path, {"eos_token_id": [12, 5000]}))
    assert found.values["eos_token_id"] == [12, 11, 10]
    (note,) = found.notes
    assert note.startswith("eos_token_id: 5000")


def test_settings_in_config_json_are_moved_to_where_they_belong(tmp_path: Path) -> None:
    config = {"do_sample": True, "temperature": 0.3, "max_length": 20}
    found = exported(folder_of(tmp_path, {"temperature": 0.6}, config))
    assert (found.values["do_sample"], found.values["temperature"]) == (True, 0.6)
    assert [note.split(": ")[1] for note in found.notes] == ["max_length"]


@pytest.mark.train
def test_transformers_writes_back_whatever_is_exported(tmp_path: Path) -> None:
    """Of five hundred files each is mended, each setting that is gone was named, and a changed copy can be saved."""
    from transformers import GenerationConfig

    choose = random.Random(3)
    for _ in range(500):
        names = choose.sample(list(VALUES), choose.randint(0, 9))
        written = {name: choose.choice(VALUES[name]) for name in names}
        found = exported(folder_of(tmp_path, written))
        GenerationConfig.from_dict(dict(found.values)).validate(strict=True)  # type: ignore[no-untyped-call]
        ids = ("eos_token_id", "pad_token_id")
        gone = {key for key in written if key not in (*found.values, *ids) and written[key] is not None}
        assert gone == {note.split(": ")[1] for note in found.notes}, written
    (tmp_path / "generation_config.json").write_text(json.dumps(found.values))
    changed = GenerationConfig.from_pretrained(tmp_path)
    changed.repetition_penalty = 1.2
    changed.save_pretrained(tmp_path)


@pytest.mark.train
def test_the_settings_that_config_json_must_not_hold_are_all_known() -> None:
    from transformers import GenerationConfig

    from qwen_job.models.generation import MISPLACED

    assert set(GenerationConfig._get_default_generation_params()) - {"use_cache"} <= set(MISPLACED)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path).joinpath("generation_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        exported(tmp_path)


def test_model_check_lists_what_is_left_out(tmp_path: Path) -> None:
    from qwen_job.cli import cli
    from qwen_job.models.random_init import load_config, write_random_model

    target = tmp_path / "model"
    target.mkdir()
    write_random_model(
        {**load_config("qwen2-tiny"), "num_hidden_layers": 1, "vocab_size": 300, "brightness": 3}, ["hello"], target
    )
    path = target / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": False, "top_p": 0.5}))
    done = CliRunner().invoke(cli, ["model", "check", str(target)])
    assert done.exit_code == 0 and "top_p" in done.stderr and "complete" in done.stdout
    assert "config.json: brightness: " in done.stderr
