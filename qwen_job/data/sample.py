"""Text of the training data, without reading it as conversations: what a random model's tokenizer is trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from qwen_job.data.rows import read_chunks

SAMPLE_BYTES = 8 * 1024 * 1024  # of each file, enough for a vocabulary of a few thousand entries
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


def sample_texts(files: Iterable[Path]) -> list[str]:
    """Return the distinct strings in conversation files, from about SAMPLE_BYTES of each file.

    Keys and roles are included once; the layout of the conversations does not matter.
    """
    texts: dict[str, None] = {}
    for path in files:
        for found in _STRING.finditer(_head(path)):
            try:
                texts[json.loads(found.group(0), strict=False)] = None
            except ValueError:
                continue
    return list(texts)


def _head(path: Path) -> str:
    head = b""
    for chunk in read_chunks(path):
        head += chunk.payload
        if len(head) >= SAMPLE_BYTES:
            break
    return head.decode(errors="ignore")
