"""qwen-job data, as a person types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from qwen_job.cli import main
from qwen_job.data import open_prepared, prepare_data
from qwen_job.data.rules import RULES
from qwen_job.resources import resource
from qwen_job.run.sections import DataFile, DataSpec

from .conftest import conversation

SVG = "{http://www.w3.org/2000/svg}"
DEMO = str(resource("configs", "data", "demo.json"))
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command line and returns (exit code, stdout, stderr)."""

    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["data", *map(str, args)])
        code = end.value.code
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return run


def test_check_of_good_data(run: Run) -> None:
    code, out, err = run("check", DEMO, "--strict")
    assert (code, err) == (0, "")
    assert "72 rows, 172 turns" in out and "█" in out
    assert "tokens by kind: ░ prompt 2,026 (70.0%), █ answer 867 (30.0%); learnt 867 (30.0%)" in out


def test_check_of_bad_data(run: Run, write: Callable[..., Path]) -> None:
    path = write([conversation("q", "a"), conversation("q", "")])
    code, out, err = run("check", path)
    assert code == 4
    assert f"{path}:2: turn 2 (assistant): is empty" in out
    assert "1 of 2 rows cannot be used for training" in err
    code, out, _ = run("check", path, "--json")
    assert code == 4
    assert json.loads(out)["counts"]["order"] == 1


def test_keys_and_turn_order_by_option(run: Run, write: Callable[..., Path], tiny: Path, tmp_path: Path) -> None:
    rows = [
        {"topic_of_it": "x", "id": 1, **conversation("q", "a")},
        {"conversations": conversation("q", "a")["conversations"][1:]},
    ]
    path, target = write(rows), tmp_path / "out.json"
    code, out, _ = run("check", path)
    assert code == 4 and f"{path}:1: topic_of_it: " in out and "--ignore-key" in out and "--turn-order" in out
    options = ("--ignore-key", "topic_of_it", "--turn-order", "reference")
    code, out, _ = run("check", path, *options)
    assert code == 0 and "id 1" in out and "topic_of_it 1" in out and "1 conversations without an answer" in out
    assert run("clean", path, target, *options)[0] == 0
    assert json.loads(target.read_text(encoding="utf-8")) == rows[:1]
    code, _, err = run("prepare", path, "--tokenizer", tiny, "--output", tmp_path / "cache", *options)
    assert code == 0 and "without_answer 1" in err and "topic_of_it 1" in err
    code, _, err = run("prepare", path, "--tokenizer", tiny, "--output", tmp_path / "cache")
    assert code == 4 and f"{path}:1: topic_of_it: " in err


def test_check_draws_the_lengths(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "lengths.svg"
    assert run("check", DEMO, "--svg", picture)[0] == 0
    drawn = [text.text or "" for text in ElementTree.parse(picture).getroot().iter(f"{SVG}text")]
    assert drawn[0].startswith("72 conversations, tokens each (estimated)")
    assert drawn[1:3] == ["prompt", "answer"]
    assert sum(int(text.split()[0]) for text in drawn[1:] if "(" in text) == 72
    picture.write_text("mine")
    assert run("check", DEMO, "--svg", picture)[0] != 0
    assert picture.read_text() == "mine"


def test_check_warns_of_what_prepare_would_cut(
    run: Run, tiny: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    path = write([conversation("q", "字 word " * 400), conversation("q", "a")])
    _, out, _ = run("check", path, "--tokenizer", tiny, "--json")
    assert json.loads(out)["counts"]["long_sample"] == 1
    _, out, _ = run("prepare", path, "--tokenizer", tiny, "--output", tmp_path, "--json")
    assert json.loads(out)["stats"]["long_samples"] == 1


def test_check_shows_the_tail_of_the_lengths(run: Run, tiny: Path, write: Callable[..., Path]) -> None:
    path = write([conversation("q", "a"), conversation("q " * 10, "b"), conversation("q", "字 " * 80_000)])
    code, out, _ = run("check", path, "--tokenizer", tiny, "--max-length", 2048)
    rows = [line.split() for line in out.splitlines() if " tokens " in line and line.lstrip()[:1] in "<>"]
    assert code == 0 and rows[-1][0].startswith("<=") and int(rows[-1][0][2:]) >= 131072
    assert rows[-1][2:5] == ["1", "33.3%", "100.0%"]
    assert "of the samples: 50% up to" in out
    assert "over 2,048 tokens: 1 samples (33.33%)" in out and "see data.long_samples" in out


def test_warnings_count_when_strict(run: Run, write: Callable[..., Path]) -> None:
    path = write([conversation("q", "13812345678")])
    assert run("check", path)[0] == 0
    assert run("check", path, "--strict")[0] == 4


def test_clean(run: Run, write: Callable[..., Path], tmp_path: Path) -> None:
    path, target = write([conversation("q", "a"), conversation("q", "")]), tmp_path / "out.jsonl"
    code, out, err = run("clean", path, target)
    assert (code, out) == (0, f"{target}\n")
    assert "kept 1 (repaired 0), dropped 1: order 1" in err
    _, _, err = run("clean", write([conversation("q", "a\x07")]), tmp_path / "one.jsonl")
    assert "1 row: control or invisible characters removed" in err
    write([conversation("q", "a"), conversation("q", "")])
    code, _, err = run("clean", path, target)
    assert code == 2
    assert "already exists" in err
    assert run("clean", path, target, "--force", "--keep", "duplicate")[0] == 0
    code, _, err = run("clean", path, tmp_path / "new.jsonl", "--drop", "duplicates")
    assert code == 2 and "did you mean 'duplicate'" in err


def test_the_help_of_clean_lists_the_rules(run: Run) -> None:
    out = " ".join(run("clean", "--help")[1].split())
    assert all(f"{rule} {meaning}" in out for rule, (_, meaning) in RULES.items())
    assert "earlier row [dropped]" in out and "UTF-8 [always dropped]" in out


def test_a_turn_may_be_as_long_as_a_row(run: Run, write: Callable[..., Path]) -> None:
    path = write([conversation("word " * 600, "a")])
    for options, found in (
        ((), 1),
        (("--max-length", "4096"), 0),
        (("--max-length", "4096", "--max-turn-tokens", "9"), 1),
    ):
        assert json.loads(run("check", path, "--json", *options)[1])["counts"]["long_turn"] == found


def test_halves_of_surrogate_pairs_are_escaped(run: Run, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.jsonl")
    good = {"id": "\ud83d", **conversation("q", "a")}
    path.write_text(json.dumps(good) + "\n" + json.dumps({"\ud83d": 1}), encoding="utf-8")
    code, out, _ = run("check", path)
    assert code == 4 and r"\udcff.jsonl:2: row: has no known layout (keys: \ud83d)" in out
    code, out, _ = run("check", path, "--json")
    assert json.loads(out)["findings"][0]["file"] == str(path)
    assert run("clean", path, tmp_path / "out.jsonl")[0] == 0
    target = (tmp_path / "out.jsonl").rename(path)
    assert json.loads(target.read_text(encoding="utf-8")) == good
    code, out, _ = run("prepare", target, "--tokenizer", tiny, "--output", tmp_path / "cache")
    index = json.loads((Path(out.strip()) / "index.json").read_text(encoding="utf-8"))
    assert code == 0 and index["spec"]["train"][0]["path"] == str(target)


def test_what_cannot_be_looked_up_is_no_internal_error(run: Run, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    for arguments in (("check", path), ("prepare", path, "--tokenizer", tiny, "--output", tmp_path)):
        code, _, err = run(*arguments)
        assert code == 5 and f"{path}: cannot be read: File name too long" in err
    target = path / "out.json"
    code, _, err = run("clean", DEMO, target)
    assert code == 5 and f"{target}: cannot be written: File name too long" in err


def test_prepare(run: Run, tiny: Path, tmp_path: Path) -> None:
    options = ("--tokenizer", tiny, "--output", tmp_path, "--eval-split", "0.1", "--max-length", "128")
    code, out, err = run("prepare", DEMO, *options)
    assert code == 0 and "samples" in err
    stats = open_prepared(Path(out.strip())).stats
    code, out, _ = run("prepare", DEMO, *options, "--json")
    assert code == 0 and json.loads(out)["stats"] == stats
    assert run("prepare", DEMO, *options, "--max-length", "5")[0] == 4
    assert run("prepare", tmp_path / "no.json", *options)[0] == 4


def test_prepare_with_weights_is_what_a_job_with_weights_finds(
    run: Run, tiny: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    more = write([conversation("q", "a")], "more.json")
    options = ("--tokenizer", tiny, "--output", tmp_path / "cache")
    code, out, _ = run("prepare", DEMO, more, *options, "--weight", "1", "--weight", "2.0")
    spec = DataSpec(train=(DataFile(path=Path(DEMO)), DataFile(path=more, weight=2.0)))
    assert code == 0 and Path(out.strip()) == prepare_data(spec, tiny, tmp_path / "cache")
    code, _, err = run("prepare", DEMO, more, *options, "--weight", "2")
    assert code == 2 and "--weight: given 1 times for 2 files" in err
    assert run("prepare", DEMO, *options, "--weight", "1001")[0] == 2


def test_help_loads_nothing_heavy() -> None:
    script = "import sys; from qwen_job.cli import data; assert not {'numpy', 'tokenizers', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.fixture
def job(tmp_path: Path, tiny: Path, write: Callable[..., Path]) -> Path:
    """A job with two data files, whose model is the tiny tokenizer's folder."""
    write([conversation("q", "a"), {"topic_of_it": "x", **conversation("word " * 50, "a")}])
    write([conversation("held", "out")], "eval.jsonl")
    path = tmp_path / "job.yaml"
    path.write_text(
        f"name: j\nmodel: {tiny}\noutput: out\ncluster: {{gpu: A100-80G, gpus_per_node: 8}}\n"
        "data: {train: [rows.json], eval: [eval.jsonl], ignore_keys: [topic_of_it]}\ntrain: {model_max_length: 64}\n"
    )
    return path


def test_a_job_says_what_to_check_and_how(run: Run, job: Path) -> None:
    code, out, err = run("check", job, "--json")
    report = json.loads(out)
    assert (code, err, report["rows"], report["tokens_exact"]) == (0, "", 3, True)
    assert report["unused_keys"] == {"topic_of_it": 1} and report["counts"]["long_sample"] == 1
    report = json.loads(run("check", job, "--json", "--max-length", 4096)[1])
    assert report["counts"]["long_sample"] == 0
    code, _, err = run("check", job, "--ignore-key", "other")
    assert code == 4


def test_a_job_says_what_to_show_and_how(run: Run, job: Path) -> None:
    code, out, _ = run("show", job)
    assert code == 0 and f"{job.parent / 'rows.json'}:1 " in out and " tokens: " in out
    assert "held" in run("show", job, 1, "--file", 2)[1] and "data.long_samples" not in out
    assert "more than train.model_max_length 64: data.long_samples: truncate decides" in run("show", job, 2)[1]
    text = job.read_text()
    job.write_text(text.replace("ignore_keys", "mask: reference, ignore_keys"))
    _, framed, _ = run("show", job, "--json")
    pieces = json.loads(framed)["samples"][0]["pieces"]
    learnt = "".join(piece["text"] for piece in pieces if piece["learnt"])
    assert learnt == "<|im_start|><|im_end|>\n" * 2 + "<|im_start|>a<|im_end|>\n"
    code, _, err = run("show", job, 1, "--file", 3)
    assert code == 2 and "has 2 data files, not 3" in err


def test_a_job_is_checked_alone(run: Run, job: Path) -> None:
    code, _, err = run("check", job, job.parent / "rows.json")
    assert code == 2 and "job.yaml: give a job alone" in err
    job.write_text("name: [")
    code, _, err = run("check", job)
    assert code == 3 and "job.yaml:2:1: invalid YAML" in err
    assert run("check", job.parent / "no.yaml")[0] == 5


def test_check_counts_the_rows_and_of_them_the_invalid_ones(tmp_path: Path, run: Run) -> None:
    rows = [conversation("q", f"a{number}") for number in range(1200)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([*rows, {"bad": 1}, conversation("q", "")]))
    code, out, err = run("check", str(path))
    assert code == 4 and "1,202 rows (2 invalid), 2,402 turns" in out
    assert "2 of 1,202 rows cannot be used for training" in err
