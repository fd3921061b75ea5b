"""Conversations in, memory-mapped packed rows out. Needs numpy and tokenizers when used, never torch.

sources   data by name: fetched into a cache, pinned to a run (splits: which files belong to a split)
rows      JSON, JSON Lines, .gz, .zst, Parquet -> rows, streaming (arrays, compress, parquet)
formats   one row of any known layout -> Conversation of chat/ (turns, calls, columns, values; keys: what is ignored and
          refused; order: what cannot be trained on; arrange: turn order; understood: what was read, for messages)
encode    Conversation -> token IDs, and which of them are trained (vocabulary)
encoder   the same, faster (characters, embedding)
writers   Conversation -> documents, in ChatML or the model's own template (documents; makers: its samples)
fit       samples that are too long (fit_rendered);  choose: repeated and held-out samples
pack      lengths -> rows of max_length
prepare   files -> a folder of memory-mapped rows, once for all ranks (worker, chunk_encoder, assemble)
prepared  reading that folder
check     what is wrong with the data, and what it holds (rules, tool_rules, schemas, privacy; contents; sizes,
          sample_sizes, histogram);  clean: a copy without it (repair);  show: one row as the model sees it (one_row)
sample    text for the tokenizer of a random model
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen_job.data.encode import ChatTokenizer as ChatTokenizer
    from qwen_job.data.prepare import prepare_data as prepare_data
    from qwen_job.data.prepared import PackedRows as PackedRows
    from qwen_job.data.prepared import PreparedData as PreparedData
    from qwen_job.data.prepared import Row as Row
    from qwen_job.data.prepared import open_prepared as open_prepared

_HOME = {
    "ChatTokenizer": "encode",
    "PackedRows": "prepared",
    "PreparedData": "prepared",
    "Row": "prepared",
    "open_prepared": "prepared",
    "prepare_data": "prepare",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    # Lazy, so that the launcher can import this package without numpy.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
