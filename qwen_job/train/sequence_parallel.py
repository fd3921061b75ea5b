"""Rows that several GPUs share: each has a slice of the row, and in attention the whole row for its part of the heads.

- ``slice_of``: a rank's slice of a batch; the borders of documents stay those of whole rows
- ``share_rows``: gives a loaded model DeepSpeed's Ulysses around our attention
- ``check_shared``: refuses what would not be computed as without it

DeepSpeed's engine is not told: to ZeRO, ranks of a group are ranks with separate data. Each backs the sum over
its own targets, divided by the targets of the whole step, so gradients add up to those of the step whatever the ZeRO
stage, reduce_scatter and sizes are. Told of the groups, ZeRO-3 divides gradients by another number than ZeRO-2 does.
"""

from __future__ import annotations

import os
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from qwen_job.errors import JobError
from qwen_job.facts.sequence_parallel import Divided, refusal
from qwen_job.run.config import TrainConfig
from qwen_job.train.arguments import Arguments
from qwen_job.train.attention import by_document, register, varlen, window_of
from qwen_job.train.batches import Batch
from qwen_job.train.packed_state import linear_layers
from qwen_job.train.ranks import Ranks
from qwen_job.train.shared_heads import ALONE, SharedHeads, ranks_are_apart

_FIELD = "train.sequence_parallel_size"
_OF_TOKENS = ("input_ids", "targets", "position_ids", "document_ids")


def slice_of(batch: Batch, ranks: Ranks) -> Batch:
    """Return this rank's slice of ``batch`` [B, S], as one row [1, B S / size]; its ``chosen`` count from the slice.

    ``boundaries`` and ``document_lengths`` stay those of [B S]. Nothing changes where no rows are shared.
    """
    size = ranks.sequence_parallel_size
    if size == 1:
        return batch
    length = batch["input_ids"].numel() // size
    start = ranks.slice_number * length
    mine: dict[str, Any] = dict(batch)
    for name in _OF_TOKENS:
        mine[name] = ranks.own_slice(mine[name].reshape(-1))[None]
    chosen = batch["chosen"] - start
    mine["chosen"] = chosen[(chosen >= 0) & (chosen < length)]
    return cast(Batch, mine)


def share_rows(model: Any, kind: str, ranks: Ranks) -> SharedHeads:
    """Let the ranks of a group exchange slices for heads around the attention of ``model``. A collective of all ranks.

    Returns what layers of linear attention need for the same. ``kind``: varlen, or sdpa, which then takes the documents
    of a row one by one and makes no mask.
    """
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    size = ranks.sequence_parallel_size
    if size == 1:
        return ALONE
    groups = [dist.new_group(range(start, start + size)) for start in range(0, ranks.world_size, size)]
    core, config = varlen if kind == "varlen" else by_document, model.config.get_text_config()
    exchange = UlyssesSPAttentionHF(
        attn=core,
        batch_size=1,
        attn_head_count=config.num_attention_heads,
        attn_head_size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        kv_head_count=config.num_key_value_heads,
        num_hidden_layers=config.num_hidden_layers,
        process_group=groups[ranks.group],
        seq_length_is_variable=True,
    )

    def shared(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        if options.get("cu_seq_lens_q") is None:  # the export's probe: every rank has all of it
            return core(module, query, key, value, attention_mask, **options)
        if ranks_are_apart():
            return _in_place_of_attention(query, key, value), None
        return exchange(module, query, key, value, None, **options)

    # Layers are compiled around its collectives, one of which a compiler cannot trace.
    register(torch.compiler.disable(shared))
    return SharedHeads(size, ranks.slice_number, groups[ranks.group])


def _in_place_of_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return something of attention's shape that depends on all three: [1, heads, S, D] -> [1, S, heads D]."""
    groups = query.shape[1] // key.shape[1]
    return (query + (key + value).repeat_interleave(groups, 1)).transpose(1, 2).flatten(2)


def check_shared(config: TrainConfig, arguments: Arguments, model: Any) -> None:
    """Refuse a size that does not fit this model and node, and what is not exact with shared rows.

    Raises:
        JobError: says what does not divide and which sizes do, or what to leave out.
    """
    size, own = config.sequence_parallel_size, model.config.get_text_config()
    if size == 1:
        return
    gpus = int(os.environ.get("LOCAL_WORLD_SIZE", config.world_size))
    divided = Divided(
        own.num_attention_heads, own.num_key_value_heads, config.data.max_length, gpus, linear_heads(model)
    )
    if why := refusal(size, divided) or _inexact(config, arguments, model):
        raise JobError(f"{_FIELD}: {size}: {why}")


def linear_heads(model: Any) -> tuple[int, ...]:
    """Return the heads of a model's linear attention, of keys and of values; empty where it has none."""
    return next(((layer.num_k_heads, layer.num_v_heads) for layer in linear_layers(model)), ())


def _inexact(config: TrainConfig, arguments: Arguments, model: Any) -> str:
    """Return what would not be the same as without shared rows, or ""."""
    if config.attention == "eager":
        return "eager attention holds a matrix of rows x rows; write train.attention: auto"
    if getattr(model.config, "attention_dropout", 0.0):
        return "the model's attention_dropout would differ from GPU to GPU; write 1"
    if config.attention == "sdpa" and window_of(model.config) is not None:
        return "sdpa needs a mask of rows x rows for the model's sliding window; write train.attention: varlen"
    if arguments.neftune_noise_alpha is not None:
        return "neftune_noise_alpha depends on the row's length, and a GPU has a slice; leave one of them out"
    return ""
