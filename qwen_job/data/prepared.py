"""Read a folder of prepared data: memory-mapped, opened in milliseconds by every rank.

index.json     written last: layout version, settings, counts, size of every other file
SPLIT.tokens   int32: the id of a trained token, ``~id`` (negative) of one that is not
SPLIT.docs     one record per document: offset and length in tokens, file index and row number of its source
SPLIT.members  int64: documents, row after row
SPLIT.rows     int64[rows + 1]: where each row's documents start in members
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qwen_job.chatml import IGNORE
from qwen_job.data.understood import describe_read
from qwen_job.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

INDEX = "index.json"
LAYOUT = 3
# The entry of index.json with the chat template: see prepare.template_record.
TEMPLATE = "chat_template"
SPLITS = ("train", "eval")
# Prefix of the counters of rows for each key that training ignores.
UNUSED_KEY = "unused_key/"
# The largest ID of the tokenizer plus one: the rows that an embedding needs.
TOKENIZER_SIZE = "tokenizer_size"
TOKEN = np.dtype("<i4")
MEMBER = np.dtype("<i8")
DOCUMENT = np.dtype([("offset", "<i8"), ("length", "<i4"), ("file", "<i4"), ("row", "<i8")])


@dataclass(frozen=True)
class Row:
    """One packed row of n tokens from k documents.

    input_ids, labels (-100: not trained) and position_ids (restarting at 0 in each document): int32[n];
    document_lengths: int32[k] with sum n; source_rows: k pairs (index of the input file, row number from 1).
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    position_ids: NDArray[np.int32]
    document_lengths: NDArray[np.int32]
    source_rows: list[tuple[int, int]]


class PackedRows:
    """The rows of one split in a fixed order: ``len(rows)``, ``rows[i]``. May be passed to other processes."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        self._tokens = self._map("tokens", TOKEN)
        self._documents = self._map("docs", DOCUMENT)
        self._members = self._map("members", MEMBER)
        self._rows = self._map("rows", MEMBER)

    def __reduce__(self) -> tuple[type[PackedRows], tuple[Path, str]]:
        return PackedRows, (self._folder, self._split)

    def __len__(self) -> int:
        return max(0, len(self._rows) - 1)

    def __getitem__(self, index: int) -> Row:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start, end = self._rows[index % len(self)], self._rows[index % len(self) + 1]
        documents = self._documents[self._members[start:end]]
        spans = zip(documents["offset"].tolist(), documents["length"].tolist(), strict=True)
        signed = np.concatenate([self._tokens[offset : offset + length] for offset, length in spans])
        masked = signed < 0
        lengths = documents["length"].astype(np.int32)
        starts = np.cumsum(lengths, dtype=np.int32) - lengths
        return Row(
            input_ids=np.where(masked, ~signed, signed).astype(np.int32, copy=False),
            labels=np.where(masked, np.int32(IGNORE), signed).astype(np.int32, copy=False),
            position_ids=np.arange(signed.size, dtype=np.int32) - np.repeat(starts, lengths),
            document_lengths=lengths,
            source_rows=list(zip(documents["file"].tolist(), documents["row"].tolist(), strict=True)),
        )

    def row_lengths(self) -> NDArray[np.int32]:
        """Return the number of tokens of every row, int32[len(self)], for grouping rows of similar length."""
        if not len(self):
            return np.empty(0, np.int32)
        lengths = self._documents["length"][self._members]
        return np.add.reduceat(lengths, self._rows[:-1]).astype(np.int32)

    def _map(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        path = self._folder / f"{self._split}.{name}"
        if not path.stat().st_size:
            return np.empty(0, dtype)
        # As a plain array: slices of a memmap object cost ten times as much.
        return np.asarray(np.memmap(path, dtype, mode="r"))


@dataclass(frozen=True)
class PreparedData:
    """A folder of prepared data; ``stats`` is index.json's: see :func:`qwen_job.data.prepare_data`.

    ``files``: those that the training rows were prepared from; ``Row.source_rows`` has indices in it.
    """

    folder: Path
    train: PackedRows
    eval: PackedRows
    stats: dict[str, Any]
    files: list[Path]


def open_prepared(folder: Path) -> PreparedData:
    """Open a folder that :func:`qwen_job.data.prepare_data` returned.

    Raises:
        DataError: it is incomplete or damaged.
    """
    index = read_index(folder)
    if index is None:
        raise DataError(f"{folder}: is not complete prepared data; run 'qwen-job data prepare' again")
    for name, size in index["files"].items():
        path = folder / name
        actual = path.stat().st_size if path.is_file() else -1
        if actual != size:
            found = f"has {actual} bytes instead of {size}" if actual >= 0 else "is missing"
            raise DataError(f"{path}: {found}; remove {folder} and prepare the data again")
    files = [Path(file["path"]) for file in index["spec"]["train"]]
    return PreparedData(folder, PackedRows(folder, "train"), PackedRows(folder, "eval"), index["stats"], files)


def describe(stats: Mapping[str, Any]) -> list[str]:
    """Describe what was read, and what was changed, left out or ignored; ``stats`` is that of :class:`PreparedData`."""
    changed = [f"{name} {count}" for name, count in stats.items() if isinstance(count, int) and count]
    lines = [describe_read(stats["read"]), *([", ".join(changed)] if changed else [])]
    named = {
        "keys that training ignores, and their rows": stats["unused_keys"],
        "chat_template_kwargs that the template does not read, and their rows": stats.get("unknown_options", {}),
    }
    for what, counts in named.items():
        if counts:
            lines.append(f"{what}: {', '.join(f'{name} {count}' for name, count in counts.items())}")
    if continued := stats.get("continued_pieces"):  # older folders have no such count
        lines.append(
            f"{continued} pieces continue a question with its answer that is longer than a row, without the system "
            "prompt and the question; data.long_samples: truncate leaves them out"
        )
    return lines


def describe_template(index: Mapping[str, Any]) -> list[str]:
    """Describe the chat template of prepared data, what it did to conversations, and which mode of thinking they train.

    ``index`` is that of :func:`read_index`.
    """
    record, stats = index[TEMPLATE], index["stats"]
    lines = [f"chat template: {record['words']}"]
    if record["why"] and stats["turns_without_reasoning"]:
        lines.append(f"empty_think: {record['empty_think']}: {record['why']}")
    if record["has_switch"] and not stats["turns_with_reasoning"]:
        lines.append(
            "no turn has reasoning: the model is trained with thinking off; serve it with enable_thinking: false"
        )
    if asked := stats.get("thinking_without_reasoning"):  # older folders have no such count
        lines.append(
            f"{asked} conversations ask for thinking (enable_thinking: true) but have answers without reasoning: those "
            "are trained as with thinking off; data.empty_think: learn trains them as an empty thought"
        )
    if stats["split_at_turns"]:
        lines.append(
            f"{stats['split_at_turns']} conversations became {stats['samples_of_split']} samples, because the template "
            "writes earlier turns otherwise than they were answered, such as without their reasoning; "
            "data.several_thoughts: join trains each as one"
        )
    return lines


def read_index(folder: Path) -> dict[str, Any] | None:
    """Return index.json of a complete folder of this layout, else None."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return index if isinstance(index, dict) and index.get("layout") == LAYOUT else None
