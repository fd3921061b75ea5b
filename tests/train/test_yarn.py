"""model.rope_scaling: the positions that train are YaRN's, and model/ has them as Qwen's cards write it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")
from qwen_job.errors import ModelError  # noqa: E402
from qwen_job.run.config import parse_config  # noqa: E402
from qwen_job.train.export import _length_note, _write_folder, probe, rehearse, verify  # noqa: E402
from qwen_job.train.modeling import build_model  # noqa: E402
from tests.support.tiny_models import write_folder  # noqa: E402
from tests.train import tiny  # noqa: E402

TOKENS = torch.arange(3, 60).unsqueeze(0)


def config_of(folder: Path, **changes: Any) -> Any:
    return parse_config(tiny.settings(folder, **changes)[0], "train.yaml")


def yarn(dim: int, base: float, original: int, factor: float) -> tuple[Any, float]:
    """Return the frequencies and the scale of sine and cosine of arXiv 2309.00071, sections 3.2 to 3.4."""
    plain = base ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    low, high = (dim * math.log(original / (beta * 2 * math.pi)) / (2 * math.log(base)) for beta in (32, 1))
    low, high = max(math.floor(low), 0), min(math.ceil(high), dim - 1)
    kept = 1 - ((torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    return plain * kept + plain / factor * (1 - kept), 0.1 * math.log(factor) + 1


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_the_trained_positions_are_yarns_and_the_exported_config_is_the_cards(tmp_path: Path, kind: str) -> None:
    source = write_folder(tmp_path / "model", kind, max_position_embeddings=256, initializer_range=0.1)
    scaling = {"factor": 4.0, "original_max_position_embeddings": 256}
    config = config_of(tmp_path / "run", model__rope_scaling=scaling, data__max_length=1024)
    plain = build_model(config_of(tmp_path / "run"), {}, source)
    model = build_model(config, {}, source)
    rotary, dim = model.model.rotary_emb, plain.model.rotary_emb.inv_freq.numel() * 2
    frequencies, scale = yarn(dim, model.config.rope_parameters["rope_theta"], 256, 4.0)
    torch.testing.assert_close(rotary.inv_freq.double(), frequencies, rtol=1e-5, atol=1e-9)
    assert rotary.attention_scaling == pytest.approx(scale)
    assert not torch.allclose(probe(model.eval(), TOKENS), probe(plain.eval(), TOKENS), atol=1e-4)

    (tmp_path / "run").mkdir(exist_ok=True)
    assert not [note for note in rehearse(model, source, config) if "positions" in note]
    target = tmp_path / "exported"
    target.mkdir()
    _write_folder(model, model.state_dict(), source, target, config)
    written = json.loads((target / "config.json").read_text())
    assert written["rope_scaling"] == {"rope_type": "yarn", **scaling}
    assert written["rope_parameters"]["rope_theta"] == written["rope_theta"]
    assert written["max_position_embeddings"] == 256
    verify(target, TOKENS, probe(model, TOKENS).float())


def test_rows_beyond_the_scaled_positions_are_noted_and_another_scaling_is_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "model", "qwen3", max_position_embeddings=256)
    longer = config_of(tmp_path / "run", model__rope_scaling={"factor": 2.0}, data__max_length=600)
    model = build_model(longer, {}, source)
    assert "600 tokens are more than the 512 positions" in _length_note(model, longer)[0]
    values = json.loads((source / "config.json").read_text())
    values.pop("rope_parameters", None)
    values["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    (source / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"already has yarn with factor 4\.0"):
        build_model(longer, {}, source)
