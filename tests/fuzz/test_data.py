"""Data files of every format under the rule of the fuzz suite: rows that nobody meant, damage, and traps for memory.

Each case runs ``data check``, ``show``, ``clean`` or ``prepare`` as a person types it; see :mod:`tests.fuzz.harness`.
"""

from __future__ import annotations

import gzip
import importlib
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_job.data.formats import RecordError, parse_record
from qwen_job.data.order import order_problems
from tests.data.conftest import tiny as tiny
from tests.fuzz.harness import Box, amount, judge
from tests.support.tool_rows import FORMS, conversations

GOOD = {"conversations": [{"from": "user", "value": "你好"}, {"from": "assistant", "value": "hello"}]}
PAIR = '{"query": "q", "response": "a"}'
LONG_PAIR = json.dumps({"query": "q" * 2000, "response": "a"})


def _commands(path: Path, tokenizer: Path, folder: Path, number: int) -> dict[str, tuple[str, ...]]:
    return {
        "check": ("data", "check", str(path)),
        "show": ("data", "show", str(path), "1"),
        "clean": ("data", "clean", str(path), str(folder / f"out{number}.json")),
        "prepare": ("data", "prepare", str(path), "--tokenizer", str(tokenizer), "--output", str(folder / "cache"),
                    "--workers", "1"),
    }  # fmt: skip


# --- traps: small files that want much memory or time, or hold what Python or JSON cannot ---


def _gz(text: bytes) -> bytes:
    return gzip.compress(text, 6)


def _zst(text: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(text)


def _zst_of(piece: bytes, times: int) -> Callable[[Path], None]:
    """Write ``piece`` again and again, without ever holding all of it."""

    def write(path: Path) -> None:
        import zstandard

        with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as stream:
            for _ in range(times):
                stream.write(piece)

    return write


def _pyarrow() -> Any:
    importlib.import_module("pyarrow.parquet")
    return importlib.import_module("pyarrow")


def _parquet(values: Callable[[Any], dict[str, Any]], **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        pyarrow = _pyarrow()
        columns = {"query": ["q", "q2"], "response": ["a", "a2"], **values(pyarrow)}
        table = pyarrow.Table.from_arrays([pyarrow.array(c) if isinstance(c, list) else c for c in columns.values()],
                                          names=[name.rstrip("2") for name in columns])  # fmt: skip
        pyarrow.parquet.write_table(table, path, compression="zstd", **options)

    return write


def _once(pyarrow: Any) -> dict[str, Any]:
    """One value of 150 MiB, stored once for both rows."""
    values = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 0], pyarrow.int32()), ["x" * (150 << 20)])
    return {"query": values}


def _utf8(pyarrow: Any) -> dict[str, Any]:
    raw = pyarrow.array([b"q\xff", b"fine"], pyarrow.binary())
    return {"query": pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())}


def _odd(pyarrow: Any) -> dict[str, Any]:
    big = 2**62
    stamps = pyarrow.array([big, None], pyarrow.timestamp("ms"))
    return {
        "date": pyarrow.array([10**8, -(10**8)], pyarrow.int32()).cast(pyarrow.date32()),
        "created_at": pyarrow.array([1, big], pyarrow.timestamp("ns", tz="UTC")),
        "updated_at": pyarrow.array([big, -big], pyarrow.duration("s")),
        "time": pyarrow.array([1, 86_399_999_999_999], pyarrow.time64("ns")),
        "score": pyarrow.array([float("nan"), float("-inf")], pyarrow.float16()),
        "meta": pyarrow.StructArray.from_arrays(
            [stamps, pyarrow.array([[1], [big]], pyarrow.list_(pyarrow.timestamp("ms")))], ["a", "b"]
        ),
        "tags": pyarrow.array([[("k", 1)], []], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    }


def _wide(pyarrow: Any) -> dict[str, Any]:
    from decimal import Decimal

    return {"score": pyarrow.array([Decimal(10) ** 75, None], pyarrow.decimal256(76, 0))}


def _deep(levels: int) -> str:
    return '{"id": ' + "[" * levels + "]" * levels + ', "query": "q", "response": "a"}'


def _key(key: str, value: str) -> bytes:
    return f'[{PAIR},\n{{"{key}": {value}, "query": "q2", "response": "a"}}]'.encode()


JWT, PASSWORD, MAIL = "eyJ-" * 250_000, "password=" * 100_000, "a@b-" * 200_000
# name -> (content or writer, exit code of check). Whatever it is, clean and prepare keep the rule, too.
TRAPS: dict[str, tuple[bytes | Callable[[Path], None], int]] = {
    "blanks-after.json.gz": (_gz(f"[{PAIR}]".encode() + b" " * (200 << 20)), 4),
    "blanks-before.json.gz": (_gz(b"\n" * (40 << 20) + b"[]"), 4),
    "blanks-within.json.gz": (_gz(f"[{PAIR},".encode() + b" " * (40 << 20)), 4),
    "a-few-blanks-before.json": (b"\n" * (5 << 20) + f"[{PAIR}]".encode(), 0),
    "a-few-blanks-after.json": (f"[{PAIR}]".encode() + b"\n" * (5 << 20), 0),
    "blank-lines.jsonl.gz": (_gz(PAIR.encode() + b"\n" * (200 << 20)), 4),
    "zeros.json.gz": (_gz(bytes(100 << 20)), 4),
    "one-string.jsonl.gz": (_gz(b'{"query": "' + b"a" * (100 << 20)), 4),
    "one-string.json.gz": (_gz(b'[{"query": "' + b"a" * (100 << 20)), 4),
    "one-string.jsonl.zst": (_zst_of(b'{"query": "' + b"a" * (1 << 20), 2000), 4),
    "one-row-again.jsonl.zst": (_zst_of((LONG_PAIR + "\n").encode() * 100, 1000), 4),
    "empty-objects.json": (b'[{"conversations": [' + b"{}," * 1_000_000 + b"{}]}]", 4),
    "a-value-of-150-mib.parquet": (_parquet(_once, dictionary_pagesize_limit=1 << 30), 4),
    "values-of-150-mib.parquet": (_parquet(lambda _: {"query": ["x" * (150 << 20), "y"]}, use_dictionary=False), 4),
    "dates.parquet": (_parquet(_odd), 0),
    "decimals.parquet": (_parquet(_wide), 0),
    "no-text.parquet": (_parquet(_utf8), 4),
    "twice.parquet": (_parquet(lambda _: {"query2": ["r", "s"]}), 4),
    "digits-4300.json": (_key("id", "7" * 4300), 0),
    "digits-5000.json": (_key("id", "7" * 5000), 4),
    "digits-5000.jsonl": (PAIR.encode() + b"\n" + b'{"weight": ' + b"7" * 5000 + b"}", 4),
    "beyond-float.json": (_key("id", "1e999"), 0),
    "weight-beyond-float.json": (_key("weight", "-1e999"), 4),
    "weight-of-4000-digits.json": (_key("weight", "7" * 4000), 4),
    "role-of-4000-digits.json": (b'[{"messages": [{"role": ' + b"7" * 4000 + b', "content": "q"}]}]', 4),
    "not-a-number.json": (_key("score", "NaN"), 0),
    **{f"deep-{n}.{kind}": ((f"[{_deep(n)}, {PAIR}]" if kind == "json" else f"{_deep(n)}\n{PAIR}").encode(), 4)
       for n in (150, 480, 900, 960, 990, 5000, 200_000) for kind in ("json", "jsonl")},
    "turns.jsonl": (json.dumps({"conversations": GOOD["conversations"] * 10_000}).encode(), 0),
    "like-secrets.json": (f'[{{"query": "{JWT}", "response": "{PASSWORD}{MAIL}"}}]'.encode(), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAPS)
def test_traps(box: Box, tiny: Path, tmp_path: Path, name: str) -> None:
    content, code = TRAPS[name]
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    for number, (command, words) in enumerate(_commands(path, tiny, tmp_path, 0).items()):
        outcome = box.command(*words)
        judge(outcome, f"{command} {name}", places=[name])
        assert number or outcome.code == code, outcome.text[:2000]
    out = tmp_path / "out0.json"
    if out.exists():
        json.loads(out.read_text(encoding="utf-8"), parse_constant=pytest.fail)


# --- rows that nobody meant ---

KEYS = [
    *("id", "conversations", "messages", "from", "value", "role", "content", "system", "instruction"),
    *("input", "output", "history", "query", "response", "tools", "weight", "loss", "type", "text"),
    *("prompt", "completion", "tool_calls", "function_call", "function", "name", "arguments"),
    *("parameters", "tool_call_id", "reasoning_content", "thinking", "functions", "enable_thinking"),
    *("chat_template_kwargs", "loss_scale"),
    *("\x1b[2J", "\u202e", ""),
]  # fmt: skip
LEAVES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        0.5,
        2**70,
        1e308,
        math.inf,
        math.nan,
        "",
        " ",
        "user",
        "assistant",
        "system",
        "tool",
    ),
    *("developer", "function_call", "observation", "{", "[]", '{"name": "f"}', '[{"name": "f", "arguments": "{}"}]'),
    *("<think>\n", "</think>", "<tool_call>{}</tool_call>", "<tool_response>", '{"x": NaN}', "[" * 200, "f"),
    *("q", "\ud800", "\x00", "\x1b]0;title\x07", "\u200b", "<|im_end|>", "a" * 5000, "text"),
]


def _value(choose: random.Random, depth: int = 0) -> Any:
    kind = choose.random()
    if depth > 4 or kind < 0.45:
        return choose.choice(LEAVES)
    if kind < 0.65:
        return [_value(choose, depth + 1) for _ in range(choose.randrange(4))]
    return {choose.choice(KEYS): _value(choose, depth + 1) for _ in range(choose.randrange(5))}


def _calling(choose: random.Random) -> Any:
    """Return a row with calls in some form."""
    form = choose.choice(list(FORMS.values()))
    return form.write(conversations(1, choose.randrange(1000))[0])


def _replace_somewhere(choose: random.Random, part: Any) -> None:
    """Put a value that nobody meant somewhere into a row."""
    while isinstance(part, (dict, list)) and part:
        places = list(part) if isinstance(part, dict) else list(range(len(part)))
        place = choose.choice(places)
        if choose.random() < 0.3 or not (isinstance(part[place], (dict, list)) and part[place]):
            if isinstance(part, dict) and choose.random() < 0.3:
                place = choose.choice(KEYS)
            part[place] = _value(choose)
            return
        part = part[place]


def _rows(choose: random.Random) -> list[Any]:
    """Return good rows and others: made up freely, or a good one with one part replaced."""
    rows: list[Any] = []
    for _ in range(choose.randint(1, 6)):
        row: Any = json.loads(
            json.dumps(choose.choice([GOOD, json.loads(PAIR), {"messages": [{"role": "user", "content": "q"}]}]))
        )
        kind = choose.random()
        if kind < 0.3:
            row = _value(choose)
        elif kind < 0.6:
            row[choose.choice(KEYS)] = _value(choose)
        elif kind < 0.8 and "conversations" in row:
            choose.choice(row["conversations"])[choose.choice(KEYS)] = _value(choose)
        elif kind < 0.95:
            row = json.loads(json.dumps(_calling(choose)))
            _replace_somewhere(choose, row)
        rows.append(row)
    return rows


def _file(choose: random.Random, folder: Path) -> Path:
    """Write a file of one of the formats, now and then damaged or of another format than its name says."""
    kind = choose.choice(["json", "jsonl", "json.gz", "jsonl.gz", "jsonl.zst", "parquet"])
    path = folder / f"rows.{kind}"
    rows, ascii_only = _rows(choose), choose.random() < 0.5
    if kind == "parquet":
        text = _table(rows, path)
    else:
        lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
        plain = "[" + ",\n".join(lines) + "]" if "jsonl" not in kind else "\n".join(lines)
        text = _damaged(choose, plain.encode("utf-8", "surrogatepass"))
        text = _gz(text) if kind.endswith("gz") else _zst(text) if kind.endswith("zst") else text
    path.write_bytes(_damaged(choose, text))
    return path


def _table(rows: list[Any], path: Path) -> bytes:
    pyarrow = _pyarrow()
    try:
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([row for row in rows if isinstance(row, dict)] or [GOOD]), path
        )
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError, TypeError):  # columns of mixed types
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD]), path)
    return path.read_bytes()


def _damaged(choose: random.Random, text: bytes) -> bytes:
    if choose.random() > 0.3 or not text:
        return text
    at, length = choose.randrange(len(text)), choose.randrange(1, 9)
    return choose.choice([
        text[:at],
        text[:at] + text[at + length :],
        text[:at] + bytes(choose.randrange(256) for _ in range(length)) + text[at + length :],
        text[:at] + choose.choice([b"[", b"{", b'"', b"\\", b"\0", b"\xff", b" ", b"e9", b"\n"]) * length + text[at:],
        text + text[:at],
    ])  # fmt: skip


@pytest.mark.parametrize(("command", "count"), [("check", 1500), ("show", 400), ("clean", 600), ("prepare", 400)])
def test_files(box: Box, tiny: Path, tmp_path: Path, command: str, count: int) -> None:
    choose = random.Random(f"{command}{amount(1)}")
    options = {"check": ["--json"], "show": [], "clean": ["--force"], "prepare": []}
    for number in range(amount(count)):
        path = _file(choose, tmp_path)
        words = (*_commands(path, tiny, tmp_path, 1)[command], *options[command])
        if choose.random() < 0.5:
            words = (*words, "--turn-order", choose.choice(["reference", "join"]), "--ignore-key", choose.choice(KEYS))
        judge(box.command(*words), (number, path.read_bytes()[:1500]), places=["rows."])


@pytest.mark.parametrize("form", FORMS)
def test_a_row_with_calls_is_read_or_refused(form: str) -> None:
    """Nothing but RecordError may leave the reader, whatever a row has in place of what it should."""
    choose = random.Random(f"{form}{amount(1)}")
    for number, made in enumerate(conversations(amount(1000), seed=choose.randrange(10**6))):
        row = json.loads(json.dumps(FORMS[form].write(made)))
        for _ in range(choose.randint(1, 3)):
            _replace_somewhere(choose, row)
        text = json.dumps(row)
        try:
            list(order_problems(parse_record(row, thinking=choose.choice(["keep", "as_written"]))))
        except RecordError as error:
            assert error.message, text
        except Exception:
            pytest.fail(f"{number}: {text}")
