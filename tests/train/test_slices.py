"""Shared rows without the processes: slices, the kernel for each document, refusals, and how ranks are named."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_job.errors import JobError, UsageError
from qwen_job.run.config import parse_config
from qwen_job.run.sections import plain
from qwen_job.train.arguments import Arguments
from qwen_job.train.oom_advice import oom_message, suggestions
from qwen_job.train.read_settings import read_settings
from qwen_job.train.rendezvous import Place
from qwen_job.train.watchdog import Standing, hang_message
from tests.train import tiny

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from qwen_job.train.attention import by_document, inputs_for  # noqa: E402
from qwen_job.train.batches import collate  # noqa: E402
from qwen_job.train.ranks import Ranks  # noqa: E402
from qwen_job.train.sequence_parallel import check_shared, slice_of  # noqa: E402
from tests.train.test_loss import tiny_model  # noqa: E402
from tests.train.test_settings import parsed  # noqa: E402

CPU = torch.device("cpu")


def rows(*documents: tuple[int, ...]) -> list[tuple[int, Any]]:
    """Return rows of documents of these lengths; every second token is learnt."""
    found = []
    for number, lengths in enumerate(documents):
        tokens = list(range(1, sum(lengths) + 1))
        labels = [token if token % 2 else -100 for token in tokens]
        positions = [place for length in lengths for place in range(length)]
        row = SimpleNamespace(input_ids=tokens, labels=labels, position_ids=positions, document_lengths=lengths)
        found.append((number, row))
    return found


@pytest.mark.parametrize("documents", [[(5, 8)], [(3, 4), (9,)], [(1,)]], ids=str)
def test_slices_are_the_row_in_order_and_know_its_borders(documents: list[tuple[int, ...]]) -> None:
    whole = collate(rows(*documents), 0, multiple=4)
    assert whole["input_ids"].shape[1] % 4 == 0
    slices = [slice_of(whole, Ranks(rank, 8, CPU, 4)) for rank in range(4, 8)]
    for name in ("input_ids", "targets", "position_ids"):
        joined = torch.cat([part[name] for part in slices], 1)  # type: ignore[literal-required]
        assert torch.equal(joined, whole[name].reshape(1, -1))  # type: ignore[literal-required]
    learnt = [part["targets"].reshape(-1)[part["chosen"]] for part in slices]
    assert torch.equal(torch.cat(learnt), whole["targets"].reshape(-1)[whole["chosen"]])
    expected = inputs_for(whole, "varlen", torch.float32)
    for part in slices:
        found = inputs_for(part, "varlen", torch.float32)
        assert torch.equal(found["cu_seq_lens_q"], expected["cu_seq_lens_q"])  # type: ignore[arg-type]
        assert found["max_length_q"] == expected["max_length_q"]


def test_a_batch_that_is_not_shared_stays_as_it_is() -> None:
    whole = collate(rows((5, 8)), 0)
    assert slice_of(whole, Ranks(1, 2, CPU)) is whole


def test_groups_are_consecutive_ranks() -> None:
    ranks = [Ranks(rank, 6, CPU, 3) for rank in range(6)]
    assert [(one.group, one.slice_number, one.counts_rows) for one in ranks[2:5]] == [
        (0, 2, False),
        (1, 0, True),
        (1, 1, False),
    ]
    assert ranks[0].groups == 2


class Largest(TorchDispatchMode):
    """Notes the most numbers in a tensor that an operation returns."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``."""
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, (tuple, list)) else [found]:
            self.most = max(self.most, one.numel() if isinstance(one, torch.Tensor) else 0)
        return found


def test_each_document_attends_to_itself_alone_and_no_square_of_the_row_is_held() -> None:
    generator = torch.Generator().manual_seed(0)
    length, heads, keys, size = 1024, 4, 2, 16
    q, k, v = (torch.randn(1, n, length, size, generator=generator).requires_grad_() for n in (heads, keys, keys))
    ends = torch.tensor([0, 1, 300, 1024], dtype=torch.int32)
    with Largest() as seen:
        out, _ = by_document(torch.nn.Module(), q, k, v, None, scaling=0.3, cu_seq_lens_q=ends)
        slopes = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert seen.most <= 2 * length * heads * size < length**2
    ids = torch.repeat_interleave(torch.arange(3), ends.diff())
    mask = (ids[:, None] == ids[None, :]).tril()
    wide = [part.repeat_interleave(heads // part.shape[1], 1) for part in (q, k, v)]
    scores = (wide[0] @ wide[1].transpose(-1, -2) * 0.3).masked_fill(~mask, -math.inf)
    expected = (scores.softmax(-1) @ wide[2]).transpose(1, 2)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)
    for ours, theirs in zip(slopes, torch.autograd.grad(expected.square().sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "model", "arguments", "why"),
    [
        ({"data__max_length": 127}, {}, {}, "2 does not divide rows of 127 tokens; sizes that work here: 1"),
        ({"sequence_parallel_size": 3}, {}, {}, "3 does not divide the 2 GPUs of a node"),
        ({"attention": "eager"}, {}, {}, "eager attention holds a matrix of rows x rows"),
        ({}, {"attention_dropout": 0.1}, {}, "the model's attention_dropout would differ from GPU to GPU"),
        (
            {},
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
            {},
            "sdpa needs a mask of rows x rows for the model's sliding window",
        ),
        ({}, {}, {"neftune_noise_alpha": 5.0}, "neftune_noise_alpha depends on the row's length"),
    ],
)
def test_what_would_not_be_exact_is_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    changes: dict[str, Any],
    model: dict[str, Any],
    arguments: dict[str, Any],
    why: str,
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    config = parsed(tmp_path, **{"sequence_parallel_size": 2, **changes})
    built = tiny_model(num_key_value_heads=2, **model)
    with pytest.raises(JobError, match=r"train\.sequence_parallel_size: [23]: ") as caught:
        check_shared(config, Arguments(**arguments), built)
    assert why in str(caught.value)
    check_shared(parsed(tmp_path), Arguments(**arguments), built)


def test_heads_of_linear_attention_must_divide_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    config, model = parsed(tmp_path, sequence_parallel_size=2), tiny_model(num_key_value_heads=2)
    layer: Any = type("GatedDeltaNet", (torch.nn.Linear,), {"num_k_heads": 3, "num_v_heads": 6})(2, 2)
    model.extra = layer
    with pytest.raises(JobError, match=r"2 does not divide the 3 heads of the model's linear attention; .* here: 1"):
        check_shared(config, Arguments(), model)


def test_another_number_of_ranks_keeps_the_batch_or_is_refused(tmp_path: Path) -> None:
    path = tiny.write_run(
        tmp_path / "run", world_size=4, sequence_parallel_size=2, training__gradient_accumulation_steps=2
    )
    config, deepspeed, notes = read_settings(["--config", str(path)], Place(0, 2, 0, "", 1))
    assert (config.training.gradient_accumulation_steps, config.global_batch_size) == (4, 4)
    # To DeepSpeed, two ranks with one row each.
    assert deepspeed["train_batch_size"] == 8 and "the global batch stays 4" in notes[0]
    with pytest.raises(UsageError, match="3 are running, and these cannot share rows by 2"):
        read_settings(["--config", str(path)], Place(0, 3, 0, "", 1))


def test_a_hang_names_ranks_with_their_groups() -> None:
    now = time.time()
    standings = [Standing(2, "n0", 5, "computing", now), Standing(3, "n0", 5, "computing", now - 100)]
    text = hang_message(2, 60, standings, 4, 11, 2)
    assert text.startswith("rank 2 of group 1: no progress for 60 s")
    assert "no sign of life from rank 3 of group 1 on n0 (step 5, computing)" in text


def test_running_out_of_memory_names_the_group_and_proposes_to_share_rows_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    changes: dict[str, Any] = {
        "model__name": "Qwen/Qwen3-4B", "world_size": 8, "device": "cuda", "precision": "bf16", "attention": "varlen",
        "fused_loss": "chunked", "gradient_checkpointing": True, "data__max_length": 131072,
        "sequence_parallel_size": 2,
    }  # fmt: skip
    values, deepspeed = tiny.settings(Path("/run"), 3, **changes)
    config = parse_config(values, "train.yaml")
    assert plain(config)["sequence_parallel_size"] == 2
    text = oom_message(config, deepspeed, "CUDA out of memory", 79 * 2**30, 80 * 2**30)
    assert text.startswith("out of memory on rank 3 of group 1 (CUDA out of memory); ")
    ways = suggestions(config, deepspeed, 79 * 2**30, 80 * 2**30).settings
    assert any(way.startswith("sequence_parallel_size: 4 with gradient_accumulation_steps: 4 (about ") for way in ways)
