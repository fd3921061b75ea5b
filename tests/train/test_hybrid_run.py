"""A run of Qwen3.5's kind from a vision-language folder: killed, resumed, exported, talked to.

Three starts of two processes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_job.models.completeness import check_folder, left_out
from qwen_job.models.tensors import read_folder
from tests.support.tiny_models import write_folder
from tests.train import tiny

pytestmark = [pytest.mark.train, pytest.mark.slow]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Return a calm run's folder, that of one that was killed in its fifth step, and what the calm one printed."""
    home = tmp_path_factory.mktemp("hybrid")
    data = tiny.conversations(home / "data.json")
    write_folder(home / "model", "qwen3_5", [data.read_text(encoding="utf-8")])
    changes: dict[str, Any] = {
        "model__name": str(home / "model"),
        "model__source": "local",
        "gradient_checkpointing": True,
        "training__max_steps": 6,
        "training__save_steps": 2,
    }
    calm = tiny.write_run(home / "calm", 2, **changes)
    code, printed = tiny.run(calm)
    assert code == 0, printed
    rough = tiny.write_run(home / "rough", 2, **changes)
    code, output = tiny.run(rough, change="kill 5")
    assert code != 0 and not (rough.parent / "done.json").exists(), output
    code, output = tiny.run(rough)
    assert code == 0 and "resuming from step-4" in output, output
    return calm.parent, rough.parent, printed


def test_killed_and_resumed_weights_are_those_of_an_undisturbed_run(runs: tuple[Path, Path, str]) -> None:
    first, second = ((folder / "model" / "model.safetensors").read_bytes() for folder in runs[:2])
    assert first == second


def test_what_is_not_trained_is_reported(runs: tuple[Path, Path, str]) -> None:
    assert "the vision tower (2 weights) is not trained" in runs[2]
    assert "the multi-token prediction (1 weights) is not trained" in runs[2]


def test_the_trained_folder_is_a_text_model_by_its_own_names(runs: tuple[Path, Path, str]) -> None:
    model = runs[0] / "model"
    assert check_folder(model)["model_type"] == "qwen3_5_text" and left_out(model) == []
    config = json.loads((model / "config.json").read_text())
    assert config["architectures"] == ["Qwen3_5ForCausalLM"] and "text_config" not in config
    assert not [name for name in read_folder(model) if "visual" in name or "mtp" in name]


def test_the_trained_model_answers(runs: tuple[Path, Path, str]) -> None:
    from qwen_job.infer.chat import Frame, open_chat
    from qwen_job.infer.source import Sampling

    chat = open_chat(runs[0], Frame("You are a helpful assistant."), Sampling(max_new_tokens=8))
    assert "".join(piece.text for piece in chat.take("Count 3: a0 b1") or ())


def test_the_trained_model_is_evaluated_beside_the_one_before(runs: tuple[Path, Path, str]) -> None:
    from qwen_job.infer.evaluate import evaluate

    result = evaluate(runs[0], runs[0].parent / "data.json", samples=1, before=True, max_new_tokens=4, progress=print)
    assert result.before is not None and result.after.loss < result.before.loss
    assert (result.conversations, len(result.answers)) == (48, 1)
