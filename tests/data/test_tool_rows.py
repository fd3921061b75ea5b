"""Every form in which data has tools, calls, results and reasoning reads to the same conversation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen_job.chat.conversation import Conversation
from qwen_job.chat.messages import plain_messages
from qwen_job.data.formats import parse_record
from qwen_job.data.order import order_problems
from qwen_job.data.rows import read_rows
from tests.support.tool_rows import FORMS, conversations, without_ids

MADE = conversations(400)
# A column of a table cannot have texts in some rows and lists in others.
OF_TABLES = [name for name in FORMS if "parts" not in name]


@pytest.mark.parametrize("name", FORMS)
def test_each_form_reads_to_the_same_conversation(name: str) -> None:
    for made in MADE:
        form = FORMS[name]
        read = parse_record(json.loads(json.dumps(form.write(made))))
        expected = made if form.ids else without_ids(made)
        assert (read if form.ids else without_ids(read))._replace(unused=()) == expected
        assert set(read.unused) <= {"id"} and not list(order_problems(read))


def test_the_messages_that_a_template_takes_read_to_the_conversation() -> None:
    for made in MADE:
        messages = plain_messages(made, made.system)
        row = {"id": made.id, "messages": messages.messages, "tools": messages.tools}
        assert parse_record(json.loads(json.dumps(row)))._replace(unused=()) == made


@pytest.mark.parametrize("name", OF_TABLES)
def test_a_table_reads_as_lines_do(name: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [FORMS[name].write(_of_one_type(made)) for made in MADE[:100]]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    read = [parse_record(row) for _, row in read_rows(tmp_path / "rows.parquet")]
    assert [each._replace(unused=()) for each in read] == [parse_record(row)._replace(unused=()) for row in rows]
    dropped = sum("null_arguments" in each.unused for each in read)
    assert dropped > 50 if name == "openai, arguments as objects" else dropped == 0


def _of_one_type(conversation: Conversation) -> Conversation:
    """Return a conversation whose arguments are texts: a column of a table has one type."""
    turns = [
        turn._replace(calls=tuple(call._replace(arguments=_texts(call.arguments)) for call in turn.calls))
        for turn in conversation.turns
    ]
    return conversation._replace(turns=tuple(turns))


def _texts(arguments: object) -> dict[str, str]:
    assert isinstance(arguments, dict)
    return {key: json.dumps(value) for key, value in arguments.items()}
