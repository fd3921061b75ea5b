"""A model's folder is loaded by what describes it: no kernel, code or weights from elsewhere, whatever it asks for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen_job.errors import ModelError
from qwen_job.infer.chat import Chat, Frame, open_chat
from qwen_job.infer.source import Sampling
from qwen_job.models.completeness import check_folder
from tests.support.taught import ANSWER, QUESTION

pytestmark = pytest.mark.train

# Each makes transformers ask a hub, run something or load something else, or fails there.
WISHES: dict[str, Any] = {
    "attn_implementation": "owner/kernel@main:forward",
    "_attn_implementation": "owner/kernel",
    "_attn_implementation_internal": "owner/kernel",
    "experts_implementation": "owner/kernel",
    "auto_map": {"AutoModelForCausalLM": "owner/model--modeling.Mine", "AutoConfig": "owner/model--modeling.Config"},
    "output_attentions": True,
    "use_kernels": True,
    "kernel_config": {"RMSNorm": "owner/kernel:Norm"},
    "base_model_tp_plan": {"layers.*": "owner/kernel"},
    "_name_or_path": "owner/model",
    "name_or_path": "owner/model",
    "num_labels": "many",
    "id2label": {"x": 1},
    "problem_type": "nonsense",
    "max_length": -1,
    "pruned_heads": {"0": [0]},
    "device_map": "auto",
    "state_dict": {},
    "trust_remote_code": True,
}


def _said(chat: Chat) -> str:
    return "".join(piece.text for piece in chat.take(QUESTION) or ())


@pytest.fixture
def wishing(taught: Path, tmp_path: Path) -> Path:
    """The taught model, its config full of wishes."""
    folder = tmp_path / "model"
    shutil.copytree(taught / "model", folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **WISHES}))
    return folder


def test_chat_evaluate_and_the_exports_check_load_what_was_checked(wishing: Path) -> None:
    import torch

    from qwen_job.infer.answer import load_answerer
    from qwen_job.train.export import probe, verify

    check_folder(wishing)
    answerer = load_answerer(wishing)
    assert answerer.model.config._attn_implementation == "sdpa"
    assert _said(Chat(answerer, Frame("You are a helpful assistant."), Sampling())) == ANSWER
    written = answerer.model.config.to_dict()
    assert not {"auto_map", "attn_implementation", "kernel_config", "use_kernels"} & written.keys()
    tokens = torch.arange(16).unsqueeze(0)
    verify(wishing, tokens, probe(answerer.model, tokens))


def test_hub_kernels_stay_off_whatever_the_environment_says() -> None:
    code = (
        "import qwen_job.models.loading, transformers.integrations.hub_kernels as hub;"
        "assert hub._kernels_enabled is False"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env={**os.environ, "USE_HUB_KERNELS": "1"})


@pytest.mark.parametrize("name", ["adapter_config.json", "shard-00001-model-00001-of-00001.safetensors"])
def test_what_would_load_other_weights_is_refused(wishing: Path, name: str) -> None:
    from qwen_job.infer.answer import load_answerer

    (wishing / name).write_text(json.dumps({"base_model_name_or_path": "owner/other"}))
    with pytest.raises(ModelError, match=name):
        load_answerer(wishing)


@pytest.mark.parametrize("settings", ["data: [1]\nmodel: 7\n", "[]", "data: {train: [3, {}]}\nmodel: {name: x}\n"])
def test_a_run_with_strange_settings_still_answers(taught: Path, tmp_path: Path, settings: str) -> None:
    from qwen_job.infer.evaluate import first_model
    from qwen_job.infer.source import find_model

    (tmp_path / "train.yaml").write_text(settings)
    (tmp_path / "model").symlink_to(taught / "model")
    assert _said(open_chat(tmp_path, Frame(), Sampling())) == ANSWER
    assert first_model(find_model(tmp_path), print) is None


def test_pickles_beside_safetensors_are_never_read(wishing: Path) -> None:
    from qwen_job.infer.answer import load_answerer

    (wishing / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    assert load_answerer(wishing).stops
