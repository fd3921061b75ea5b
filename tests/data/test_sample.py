"""The text that a random model's tokenizer is trained on."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from qwen_job.data.sample import sample_texts


def test_texts_come_from_json_in_any_layout(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"query": "\\u4f60\\u597d", "response": "a \\"b\\""}\n{"torn": "li')
    with gzip.open(tmp_path / "b.json.gz", "wt") as file:
        json.dump([{"text": "你好"}], file)
    texts = sample_texts(sorted(tmp_path.iterdir()))
    assert texts == ["query", "你好", "response", 'a "b"', "torn", "text"]
