"""Files of thousands of rows with tools, in every form: read, prepared and decoded, they are what was written."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from qwen_job.data import ChatTokenizer, PackedRows, open_prepared, prepare_data
from qwen_job.data.prepared import describe
from qwen_job.run.sections import DataFile, DataSpec
from tests.support.tool_rows import FORMS, conversations, without_ids

_THOUGHT = re.compile(r"<think>\n(.*?)\n</think>\n\n", re.DOTALL)
_CALL = re.compile(r"\n?<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
_RESULT = re.compile(r"<tool_response>\n(.*?)\n</tool_response>", re.DOTALL)


def written(made: list[Conversation], path: Path) -> Path:
    """Write a file of conversations, each in one of the forms in turn."""
    forms = list(FORMS.values())
    rows = [json.dumps(forms[n % len(forms)].write(each), ensure_ascii=False) for n, each in enumerate(made)]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def answer_in(text: str) -> Turn:
    """Read what a model emits back into a turn."""
    text, end, rest = text.partition("<|im_end|>")
    assert end and not rest
    thought = _THOUGHT.match(text)
    calls = tuple(ToolCall(**json.loads(call)) for call in _CALL.findall(text))
    words = _CALL.sub("", text[thought.end() if thought else 0 :])
    return Turn("assistant", words, thought[1] if thought else None, calls)


def documents(rows: PackedRows, tokenizer: ChatTokenizer) -> dict[int, list[tuple[str, list[Turn]]]]:
    """Return by source row the text of each of its documents and the answers that are learnt in it."""
    found: dict[int, list[tuple[str, list[Turn]]]] = defaultdict(list)
    for row in map(rows.__getitem__, range(len(rows))):
        starts = np.cumsum(row.document_lengths)[:-1]
        parts = zip(row.source_rows, np.split(row.input_ids, starts), np.split(row.labels, starts), strict=True)
        for (_, source), ids, labels in parts:
            learnt = labels >= 0
            changes = np.flatnonzero(np.diff(learnt)) + 1
            spans = [ids[span] for span in np.split(np.arange(ids.size), changes) if learnt[span[0]]]
            answers = [answer_in(tokenizer.decode(span.tolist())) for span in spans]
            found[source].append((tokenizer.decode(ids.tolist()), answers))
    return found


@pytest.mark.parametrize("count", [100, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_prepared_file_decodes_to_what_was_written(count: int, modern: Callable[[str], Path], tmp_path: Path) -> None:
    model, conversations_made = modern("qwen3"), conversations(count, seed=1)
    file = DataFile(path=written(conversations_made, tmp_path / "rows.jsonl"))
    spec = DataSpec(train=(file,), max_length=8192, long_samples="drop", packing=False)
    prepared = open_prepared(prepare_data(spec, model, tmp_path / "cache"))
    decoded = documents(prepared.train, ChatTokenizer.load(model))
    for number, made in enumerate(map(without_ids, conversations_made), 1):
        answers = [turn for _, learnt in decoded[number] for turn in learnt]
        assert answers == [turn for turn in made.turns if turn.role == "assistant"]
        _assert_prompt(decoded[number][-1][0], made)
    reasoned = sum(any(turn.reasoning for turn in made.turns) for made in conversations_made)
    said = describe(prepared.stats)[0]
    assert f"of {count:,} rows, {count:,} with tools" in said and f"{reasoned:,} with reasoning" in said


def _assert_prompt(text: str, made: Conversation) -> None:
    """Check system prompt, tools, questions and results of a document that has the whole conversation."""
    segments = [segment.split("\n", 1) for segment in text.replace("<|im_end|>\n", "").split("<|im_start|>")[1:]]
    system = next(words for role, words in segments if role == "system")
    assert system.startswith(made.system or "# Tools")
    listed = system.partition("<tools>\n")[2].partition("\n</tools>")[0].splitlines()
    assert [json.loads(tool) for tool in listed] == list(made.tools)
    asked = [words for role, words in segments if role == "user"]
    results = [result for words in asked for result in _RESULT.findall(words)]
    questions = [words for words in asked if not _RESULT.match(words)]
    assert questions == [turn.text for turn in made.turns if turn.role == "user"]
    assert results == [turn.text for turn in made.turns if turn.role == "tool"]
