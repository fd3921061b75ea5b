"""Assemble a prepared folder from the files of its chunks: append in input order, pack, and write the index last."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qwen_job.atomic import sync_file, write_atomically
from qwen_job.chat.settle import UNKNOWN_OPTION
from qwen_job.data.arrange import COUNTED
from qwen_job.data.choose import copies_of
from qwen_job.data.pack import WINDOW, pack
from qwen_job.data.prepared import DOCUMENT, INDEX, LAYOUT, MEMBER, SPLITS, TEMPLATE, TOKENIZER_SIZE, UNUSED_KEY
from qwen_job.data.understood import is_read_count, read_counts
from qwen_job.errors import DataError
from qwen_job.run.sections import DataSpec, plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PARTS = ("tokens", "docs", "members", "rows")


class Assembler:
    """Appends chunks that arrive in any order; memory does not grow with the data."""

    def __init__(self, spec: DataSpec, folder: Path, template: Mapping[str, Any]) -> None:
        self._spec, self._folder, self._template, self._tokenizer_size = spec, folder, dict(template), 0
        self._counts: Counter[str] = Counter()
        self._waiting: dict[int, dict[str, int]] = {}
        self._next = 0
        self._length = dict.fromkeys(SPLITS, 0)
        for split in SPLITS:
            for part in _PARTS:
                (folder / f"{split}.{part}").touch()

    def add(self, number: int, counts: dict[str, int]) -> None:
        """Accept chunk ``number``; it is appended once all earlier ones are."""
        self._tokenizer_size = counts.pop(TOKENIZER_SIZE)
        self._waiting[number] = counts
        while self._next in self._waiting:
            self._append(self._next)
            self._counts.update(self._waiting.pop(self._next))
            self._next += 1

    def finish(self) -> None:
        """Pack the rows and write index.json.

        Raises:
            DataError: a requested split is empty.
        """
        self._refuse_empty()
        stats: dict[str, Any] = {split: self._pack(split) for split in SPLITS}
        own = {f"{split}_{name}" for split in SPLITS for name in ("samples", "documents", "tokens", "trained_tokens")}
        stats |= {name: self._counts[name] for name in _COUNTED}
        keys = self._under(UNUSED_KEY)
        options = self._under(UNKNOWN_OPTION)
        stats["read"] = read_counts(self._counts)
        assert {name for name in self._counts if not is_read_count(name)} <= own.union(_COUNTED, keys, options)
        named = dict.fromkeys(self._spec.ignore_keys, 0)
        stats["unused_keys"] = named | {name.removeprefix(UNUSED_KEY): keys[name] for name in sorted(keys)}
        stats["unknown_options"] = {name.removeprefix(UNKNOWN_OPTION): options[name] for name in sorted(options)}
        files = {}
        for name in sorted(f"{split}.{part}" for split in SPLITS for part in _PARTS):
            files[name] = (self._folder / name).stat().st_size
            sync_file(self._folder / name)
        index: dict[str, Any] = {
            "layout": LAYOUT,
            "spec": plain(self._spec),
            TEMPLATE: self._template,
            "stats": stats,
            "files": files,
        }
        index[TOKENIZER_SIZE] = self._tokenizer_size
        text = json.dumps(index, indent=1, ensure_ascii=False) + "\n"
        # A file name may hold bytes that are not UTF-8; Python's surrogates for them become JSON escapes.
        write_atomically(self._folder / INDEX, text.encode(errors="backslashreplace"))

    def _append(self, number: int) -> None:
        for split in SPLITS:
            tokens, docs = (self._folder / f"{number:08d}.{split}.{part}" for part in ("tokens", "docs"))
            records = np.fromfile(docs, DOCUMENT)
            records["offset"] += self._length[split]
            self._length[split] += int(records["length"].sum())
            with (self._folder / f"{split}.docs").open("ab") as shard:
                records.tofile(shard)
            with (self._folder / f"{split}.tokens").open("ab") as shard:
                shard.write(tokens.read_bytes())
            tokens.unlink()
            docs.unlink()

    def _refuse_empty(self) -> None:
        if not self._counts["train_documents"]:
            files = ", ".join(str(file.path) for file in self._spec.train)
            raise DataError(
                f"data.train: {files}: no sample is left to train on; "
                "see long_samples, turn_order, learn, weights and 'qwen-job data check'"
            )
        if self._spec.eval and not self._counts["eval_documents"]:
            files = ", ".join(str(file.path) for file in self._spec.eval)
            raise DataError(f"data.eval: {files}: no sample is left to evaluate on; at max_length "
                            f"{self._spec.max_length} with long_samples {self._spec.long_samples} no sample fits: "
                            "increase max_length, or change long_samples, the weight or the file")  # fmt: skip
        if self._spec.eval_split and not self._counts["eval_documents"]:
            samples = self._counts["train_samples"]
            raise DataError(f"data.eval_split: {self._spec.eval_split} of {samples} samples holds out no sample; "
                            "write a larger fraction or give an eval file")  # fmt: skip

    def _under(self, prefix: str) -> dict[str, int]:
        return {name: count for name, count in self._counts.items() if name.startswith(prefix)}

    def _pack(self, split: str) -> dict[str, Any]:
        """Write SPLIT.members and SPLIT.rows, a window of documents at a time; return the statistics of the split."""
        figures = {name: self._counts[f"{split}_{name}"] for name in ("samples", "documents")}
        rows = tokens = 0
        with (
            (self._folder / f"{split}.members").open("wb") as members_file,
            (self._folder / f"{split}.rows").open("wb") as rows_file,
        ):
            written = 0
            np.zeros(1, MEMBER).tofile(rows_file)
            for members, lengths in self._windows(split):
                starts, order = self._rows_of(lengths)
                members[order].astype(MEMBER).tofile(members_file)
                (starts[1:] + written).astype(MEMBER).tofile(rows_file)
                written += members.size
                rows += starts.size - 1
                tokens += int(lengths.sum(dtype=np.int64))
        filled = tokens / (rows * self._spec.max_length) if rows else 0.0
        trained = self._counts[f"{split}_trained_tokens"]
        return figures | {
            "rows": rows,
            "tokens": tokens,
            "trained_tokens": trained,
            "filled": round(filled, 4),
        }

    def _rows_of(self, lengths: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._spec.packing:
            return pack(lengths, self._spec.max_length)
        return np.arange(lengths.size + 1), np.arange(lengths.size)

    def _windows(self, split: str) -> Any:
        """Yield (document numbers, lengths), each document repeated by its file's weight."""
        path = self._folder / f"{split}.docs"
        weights = [file.weight for file in getattr(self._spec, split) or self._spec.train]
        for again in range(int(np.ceil(max(weights)))):
            for start in range(0, path.stat().st_size // DOCUMENT.itemsize, WINDOW):
                records = np.fromfile(path, DOCUMENT, WINDOW, offset=start * DOCUMENT.itemsize)
                shown = np.flatnonzero(copies_of(weights, records["file"], records["row"]) > again)
                if shown.size:
                    yield shown + start, records["length"][shown]


_COUNTED = (
    "long_samples",
    "truncated",
    "turns_cut",
    "answers_cut",
    "tokens_cut",
    "dropped",
    "split",
    "split_pieces",
    "pieces_without_answer",
    "continued_pieces",
    "exchanges_split",
    "left_out_by_weight",
    "without_system",
    "nothing_learnt",
    "thoughts_stripped",
    "turns_with_reasoning",
    "turns_without_reasoning",
    "thinking_without_reasoning",
    "split_at_turns",
    "samples_of_split",
    "joined_thoughts",
    "looks_like_control_tokens",
    "words_read_by_the_template",
    *COUNTED,
)
