"""The head of the model card, as huggingface_hub reads it: licence, languages, scores; an edited card is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_job.errors import EnvironmentFault
from qwen_job.report.card_head import languages_of
from qwen_job.report.model_card import write_model_card
from qwen_job.run.scores import Comparison
from tests.support.run_folders import SETTINGS, run_folder

SCORE = Comparison("gsm8k", "exact_match, strict-match", True, 100, 5, 0.5, 0.05, 0.4, 0.05, -0.1, 0.04, True)
SCORES = {"scores": {"harness": "lm-eval 0.4.13", "results": [SCORE.to_dict()]}}


def finished(folder: Path, evaluation: dict[str, Any] | None = None, **settings: Any) -> Path:
    run = run_folder(
        folder, train_yaml=yaml.safe_dump({**SETTINGS, **settings}), evaluation_json=json.dumps(evaluation or {})
    )
    (run / "model").mkdir()
    return run


def head(run: Path) -> dict[str, Any]:
    value = yaml.safe_load(write_model_card(run).read_text().split("---\n")[1])
    assert isinstance(value, dict)
    return value


def test_scores_are_read_by_the_hub_s_own_library(tmp_path: Path) -> None:
    cards = pytest.importorskip("huggingface_hub", reason="needs training: huggingface_hub is not installed")
    run = finished(tmp_path / "run", SCORES)
    (result,) = cards.ModelCard.load(write_model_card(run)).data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("gsm8k", "exact_match", 0.4)
    assert result.metric_name == "exact_match, strict-match, 5-shot" and result.source_name == "lm-eval 0.4.13"
    row = "| gsm8k | exact_match, strict-match | 100 | 0.5000 ± 0.0500 | 0.4000 ± 0.0500 | -0.1000 ± 0.0400 | worse |"
    assert row in (run / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("                      Apache License\n                Version 2.0, January 2004", {"license": "apache-2.0"}),
        ("Tongyi Qianwen LICENSE AGREEMENT", {"license": "other", "license_name": "tongyi-qianwen"}),
        ("Qwen RESEARCH LICENSE AGREEMENT", {"license": "other", "license_name": "qwen-research"}),
        ("All mine", {}),
    ],
)
def test_the_licence_is_that_of_the_base_model(tmp_path: Path, text: str, licence: dict[str, str]) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "LICENSE").write_text(text)
    found = head(finished(tmp_path / "run", model={"name": str(tmp_path / "base"), "source": "local"}))
    assert {key: found[key] for key in ("license", "license_name") if key in found} == licence


@pytest.mark.parametrize(
    ("text", "languages"),
    [
        ("你好，世界。今天天气怎么样", ["zh"]),
        ("こんにちは世界", ["ja"]),
        ("안녕하세요 세계", ["ko"]),
        ("The cat is on the mat and you know it", ["en"]),
        ("from value user assistant conversations", []),
        ("the rest of it is 你好世界你好世界", ["zh", "en"]),
        ("", []),
        ("123 !?", []),
    ],
)
def test_languages_are_told_by_scripts_and_frequent_words(text: str, languages: list[str]) -> None:
    assert languages_of(text) == languages


def test_the_languages_are_those_of_the_training_data(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"query": "你好", "response": "你好！"}]))
    run = finished(tmp_path / "run", data={"train": [{"path": str(tmp_path / "a.json")}, {"path": "/gone.json"}]})
    assert head(run)["language"] == ["zh"]


def test_a_card_that_somebody_edited_is_kept(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    path = write_model_card(run)
    assert write_model_card(run) == path  # its own is written again
    path.write_text(path.read_text().replace("# run", "# Mine"))
    with pytest.raises(EnvironmentFault, match=r"README\.md: was edited"):
        write_model_card(run)
    assert "# Mine" in path.read_text()


def test_the_hardware_is_a_figure(tmp_path: Path) -> None:
    start = {"type": "start", "time": 1.0, "step": 0, "world_size": 8, "hardware": "NVIDIA A100-SXM4-80GB"}
    run = finished(tmp_path / "run")
    (run / "metrics.jsonl").write_text(json.dumps(start) + "\n")
    assert "| Hardware | 8 x NVIDIA A100-SXM4-80GB |" in write_model_card(run).read_text()
