"""What data show prints and what data check counts is what is trained, token for token."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwen_job.chat.chosen import choose
from qwen_job.data.formats import parse_record
from qwen_job.data.sample_sizes import SampleSizer
from qwen_job.data.writers import TemplateWriter, load_writer
from qwen_job.run.sections import DataFile, DataSpec
from tests.chat import cases
from tests.support.tool_rows import FORMS, conversations

from .test_cli import Run, run

__all__ = ["run"]


@pytest.mark.parametrize("name", ["qwen3", "qwen3_6"])
def test_what_is_shown_is_what_is_trained(
    run: Run, write: Callable[..., Path], modern: Callable[[str], Path], name: str
) -> None:
    folder = modern(name)
    thinks = cases.maker(name).traits.thinks
    talks = [each for each in conversations(99) if len(each.turns) > 8 and any(turn.calls for turn in each.turns)]
    row = FORMS["openai"].write(next(each for each in talks if bool(each.turns[-1].reasoning) == thinks))
    code, out, _ = run("show", write([row]), "--model", folder, "--json")
    shown = [each["amounts"] for each in json.loads(out)["samples"]]
    writer = load_writer(DataSpec(train=(DataFile(path=Path("a")),)), choose("auto", folder), folder)
    assert isinstance(writer, TemplateWriter)
    documents = writer.documents(parse_record(row), Counter())
    tokens, lengths = writer.encode(documents)
    trained = [int((part >= 0).sum()) for part in np.split(tokens, np.cumsum(lengths[:-1]))]
    assert code == 0
    assert [each["total"] for each in shown] == lengths.tolist()
    assert [each["learnt"] for each in shown] == trained
    [measured] = SampleSizer(writer.maker, writer.tokenizer).measure([parse_record(row)])
    assert [sum(sample) for sample in measured.samples] == lengths.tolist()
