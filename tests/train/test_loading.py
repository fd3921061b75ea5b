"""Loading shares one copy of the weights a node: mapped where nothing is converted, on the GPU where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")
from qwen_job.facts.model_files import read_text_config  # noqa: E402
from qwen_job.models.loading import build_native, load_native  # noqa: E402
from qwen_job.run.config import parse_config  # noqa: E402
from qwen_job.train import modeling  # noqa: E402
from qwen_job.train.resume import Resume, reads_weights  # noqa: E402
from tests.support.tiny_models import TINY, write_folder  # noqa: E402
from tests.train import tiny  # noqa: E402


def in_the_files(folder: Path, tensor: Any) -> bool:
    """Tell whether a tensor is a part of a folder's files that this process maps."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    ends = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    return any(start <= tensor.data_ptr() < stop for start, stop in ends)


def test_weights_in_their_own_type_stay_in_the_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", "qwen3")
    own, _ = load_native(folder, torch.float32, "sdpa")
    assert all(in_the_files(folder, weight) for weight in own.parameters())
    converted, _ = load_native(folder, torch.float16, "sdpa")
    assert not any(in_the_files(folder, weight) for weight in converted.parameters())


def test_a_device_gets_the_same_model(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", "qwen3")
    host, _ = load_native(folder, torch.float16, "sdpa")
    device, report = load_native(folder, torch.float16, "sdpa", device=torch.device("cpu"))
    assert not report["missing_keys"]
    for (name, one), (other, two) in zip(
        [*host.named_parameters(), *host.named_buffers()],
        [*device.named_parameters(), *device.named_buffers()],
        strict=True,
    ):
        assert name == other and one.dtype == two.dtype and torch.equal(one, two)
    assert device.model.rotary_emb.inv_freq.dtype == torch.float32
    assert not [module for module in device.modules() if hasattr(module, "_hf_hook")]


@pytest.mark.parametrize(
    ("precision", "stage", "on_gpu"), [("fp32", 2, False), ("bf16", 2, True), ("fp16", 0, True), ("bf16", 3, False)]
)
def test_only_weights_that_are_converted_go_straight_to_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, stage: int, on_gpu: bool
) -> None:
    folder = write_folder(tmp_path / "model", "qwen3")  # in float32
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    values, deepspeed = tiny.settings(tmp_path / "run", stage, device="cuda", precision=precision)
    device = modeling._device_that_converts(parse_config(values, "train.yaml"), deepspeed, folder)
    assert device == (torch.device("cuda", 3) if on_gpu else None)


def state(model: Any) -> list[tuple[str, Any, Any]]:
    return [(name, one.dtype, one.shape) for name, one in [*model.named_parameters(), *model.named_buffers()]]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", TINY)
def test_a_checkpoints_weights_make_a_model_without_weights_the_same(tmp_path: Path, kind: str, tied: bool) -> None:
    folder = write_folder(tmp_path / "model", kind, tie_word_embeddings=tied)
    loaded, _ = load_native(folder, torch.bfloat16, "sdpa")
    for weights in folder.glob("*.safetensors"):
        weights.unlink()  # none is opened
    built = build_native(folder, torch.bfloat16, "sdpa", read_text_config(folder))
    with torch.no_grad():
        for weight in built.parameters():
            weight.fill_(float("nan"))
    built.load_state_dict(loaded.state_dict())
    assert state(built) == state(loaded)
    for (name, one), (_, two) in zip(built.named_buffers(), loaded.named_buffers(), strict=True):
        assert torch.equal(one, two), name
    assert (built.lm_head.weight is built.get_input_embeddings().weight) == tied
    assert built.config.to_dict() == loaded.config.to_dict() and built.training == loaded.training
    assert built.config._attn_implementation == loaded.config._attn_implementation
    assert built.config._experts_implementation == loaded.config._experts_implementation
    assert built.generation_config.to_dict() == loaded.generation_config.to_dict()
    row = torch.arange(24)[None]
    assert torch.equal(built(row).logits, loaded(row).logits)


@pytest.mark.parametrize(
    ("resume", "split", "reads"),
    [
        (None, 1, True),
        (Resume(4, Path("/run/checkpoints/step-4"), universal=False, saved=4, in_memory=False), 1, False),
        (Resume(4, Path("/dev/shm/node-0/step-4"), universal=False, saved=2, in_memory=True), 1, False),
        (Resume(4, Path("/run/checkpoints/step-4"), universal=True, saved=4, in_memory=False), 1, True),
        (Resume(4, Path("/run/checkpoints/step-4"), universal=False, saved=4, in_memory=False), 2, True),
    ],
)
def test_weights_are_read_unless_a_checkpoint_replaces_every_one(
    resume: Resume | None, split: int, reads: bool
) -> None:
    deepspeed: dict[str, Any] = {"zero_optimization": {"stage": 2}}
    deepspeed |= {"expert_parallel": {"enabled": True, "autoep_size": split}} if split > 1 else {}
    assert reads_weights(deepspeed, resume) == reads
