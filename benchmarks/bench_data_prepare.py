"""`data prepare` against the reference's way of preprocessing, in one run on the same cores.

    python benchmarks/bench_data_prepare.py --tokenizer FOLDER             samples, tokens and MB per second, both sides
    python benchmarks/bench_data_prepare.py --tokenizer FOLDER --package transformers  the same on a package's real text
    python benchmarks/bench_data_prepare.py --tokenizer FOLDER --memory 1000   RSS while preparing 1000 MB
    python benchmarks/bench_data_prepare.py --tokenizer FOLDER --open 1000000  time to open a million conversations

FOLDER holds the tokenizer.json of a Qwen model ('qwen-job model fetch' or 'convert' writes it). The reference's way:
one process; a Python tokenizer over tiktoken, called once for the role and once for the text of each message; ids
and targets as Python lists, padded to the maximum length. It needs transformers and tiktoken. The conversations are
made up of words of the tokenizer's own vocabulary, frequent ones more often (Zipf), half Chinese and half English.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qwen_job.chatml import PATTERN
from qwen_job.data import open_prepared, prepare_data
from qwen_job.data.vocabulary import bytes_of
from qwen_job.run.sections import DataFile, DataSpec

MAX_LENGTH = 2048
SYSTEM = "You are a helpful assistant."
IGNORE = -100


def make_writer(tokenizer: Path, characters: int) -> Any:
    """Return a function that makes up one conversation of about ``characters`` characters."""
    vocab = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    words = [token.decode("utf-8", "ignore") for token in bytes_of(vocab)]
    chinese = [word for word in words if len(word) > 1 and all("\u4e00" <= char <= "\u9fff" for char in word)][:8000]
    english = [word[1:] for word in words if word[:1] == " " and word[1:].isascii() and word[1:].isalpha()][:16000]
    choose = random.Random(1)
    weights = {id(pool): list(accumulate(1 / (rank + 10) for rank in range(len(pool)))) for pool in (chinese, english)}

    def sentence(is_chinese: bool) -> str:
        pool = chinese if is_chinese else english
        picked = choose.choices(pool, cum_weights=weights[id(pool)], k=choose.randint(4, 14))
        return "".join(picked) + choose.choice("，。！？") if is_chinese else " ".join(picked).capitalize() + ". "

    def text(length: int, is_chinese: bool) -> str:
        parts: list[str] = []
        while sum(map(len, parts)) < length:
            parts.append(sentence(is_chinese))
        return "".join(parts).strip()

    def conversation(number: int) -> dict[str, Any]:
        # Chinese says the same in about a third of the characters.
        is_chinese, size = bool(number % 2), characters // (3 if number % 2 else 1)
        asked = text(size // 4, is_chinese)
        turns = [("user", asked), ("assistant", text(max(8, size - len(asked)), is_chinese))]
        return {"id": str(number), "conversations": [{"from": role, "value": value} for role, value in turns]}

    return conversation


def reference_tokenizer(tokenizer: Path) -> Any:
    """A Python tokenizer over tiktoken of the kind that Qwen-1 ships: bytes as tokens, ids looked up one by one."""
    import tiktoken
    from transformers import PreTrainedTokenizer

    vocab = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    ranks = bytes_of(vocab)
    special = {"<|endoftext|>": len(ranks), "<|im_start|>": len(ranks) + 1, "<|im_end|>": len(ranks) + 2}

    class Reference(PreTrainedTokenizer):
        def __init__(self) -> None:
            self.inner = tiktoken.Encoding("q", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
            self.decoder = {number: token for token, number in (ranks | special).items()}
            super().__init__()

        @property
        def vocab_size(self) -> int:
            return self.inner.n_vocab

        def get_vocab(self) -> dict[Any, int]:
            return ranks

        def tokenize(self, text: str, **_: Any) -> list[Any]:
            ids = self.inner.encode(unicodedata.normalize("NFC", text), allowed_special="all")
            return [self.decoder[number] for number in ids]

        def convert_tokens_to_ids(self, tokens: Any) -> Any:
            return [special[token] if token in special else ranks.get(token) for token in tokens]

    return Reference()


def reference_way(rows: list[dict[str, Any]], tokenizer: Any) -> int:
    """Preprocess as the reference does; return the number of tokens that are not padding."""
    start, end = tokenizer.inner._special_tokens["<|im_start|>"], tokenizer.inner._special_tokens["<|im_end|>"]
    pad = tokenizer.inner._special_tokens["<|endoftext|>"]
    newline = tokenizer("\n").input_ids
    opening = [*tokenizer("system").input_ids, *newline]
    all_ids, all_targets = [], []
    for row in rows:
        ids = [start, *opening, *tokenizer(SYSTEM).input_ids, end, *newline]
        targets = [start, *[IGNORE] * (len(ids) - 3), end, *newline]
        for turn in row["conversations"]:
            role = tokenizer("<|im_start|>" + turn["from"]).input_ids
            part = role + newline + tokenizer(turn["value"]).input_ids + [end, *newline]
            ids += part
            if turn["from"] == "user":
                targets += [start, *[IGNORE] * (len(part) - 3), end, *newline]
            else:
                targets += [start, *[IGNORE] * len(role), *part[len(role) + 1 : -2], end, *newline]
        ids += [pad] * (MAX_LENGTH - len(ids))
        targets += [IGNORE] * (MAX_LENGTH - len(targets))
        all_ids.append(ids[:MAX_LENGTH])
        all_targets.append(targets[:MAX_LENGTH])
    np.array(all_targets, np.int32)
    return int((np.array(all_ids, np.int32) != pad).sum())


def package_reader(package: str, characters: int) -> Any:
    """Return a function that gives consecutive pieces of an installed package's source files as conversations."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{package}: is no installed package")
    files = sorted(Path(found.submodule_search_locations[0]).rglob("*.py"))
    text = "".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)
    asked = characters // 4

    def conversation(number: int) -> dict[str, Any]:
        at = number * characters % max(1, len(text) - characters)
        parts = (text[at : at + asked], text[at + asked : at + characters])
        turns = zip(("user", "assistant"), parts, strict=True)
        return {"conversations": [{"from": role, "value": part.strip() or "..."} for role, part in turns]}

    return conversation


def write_rows(path: Path, conversation: Any, *, count: int = 0, megabytes: int = 0, kinds: int = 20000) -> int:
    """Write conversations as one JSON array; return how many. The same ``kinds`` come again and again."""
    known: list[str] = []
    with path.open("w", encoding="utf-8") as stream:
        number = 0
        while number < count or stream.tell() < megabytes << 20:
            if number < kinds:
                known.append(json.dumps(conversation(number), ensure_ascii=False))
            stream.write(("[" if not number else ",\n") + known[number % kinds])
            number += 1
        stream.write("]")
    return number


class Memory:
    """The largest resident set of this process and all below it, sampled four times a second.

    A page that several of them share counts once (the kernel's proportional set size).
    """

    def __enter__(self) -> Memory:
        self.peak, self.samples, self._stop = 0, list[int](), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.25):
            self.samples.append(sum(map(_resident, _family(os.getpid()))))
            self.peak = max(self.peak, self.samples[-1])


def _family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    try:
        tasks = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [pid, *(member for child in " ".join(tasks).split() for member in _family(int(child)))]


def _resident(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0  # it has ended
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:")), 0)


def timed_prepare(path: Path, tokenizer: Path, cache: Path, workers: int) -> tuple[float, Path]:
    spec = DataSpec(train=(DataFile(path=path),), max_length=MAX_LENGTH)
    start = time.perf_counter()
    folder = prepare_data(spec, tokenizer, cache, workers=workers)
    return time.perf_counter() - start, folder


def _cpu_seconds() -> float:
    """Processor time of this process and of its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def reference_side(path: Path, tokenizer: Path) -> dict[str, float]:
    """Preprocess a whole file the reference's way; only that is timed, not reading the file."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    slow = reference_tokenizer(tokenizer)
    start, cpu = time.perf_counter(), _cpu_seconds()
    # In parts, so that the padded lists of all rows need not fit into memory.
    tokens = sum(reference_way(rows[at : at + 5000], slow) for at in range(0, len(rows), 5000))
    seconds = time.perf_counter() - start
    return {"per_second": len(rows) / seconds, "cpu": _cpu_seconds() - cpu, "samples": len(rows), "tokens": tokens}


def our_side(path: Path, tokenizer: Path, workers: int) -> dict[str, float]:
    """Prepare a whole file: reading, encoding, packing, writing. The rate is that after the first chunk is done."""
    marks: list[tuple[float, int]] = []
    spec = DataSpec(train=(DataFile(path=path),), max_length=MAX_LENGTH)
    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        prepared = prepare_data(
            spec, tokenizer, Path(cache), workers=workers, progress=lambda n: marks.append((time.perf_counter(), n))
        )
        end = time.perf_counter()
        stats = open_prepared(prepared).stats["train"]
    (first, before), total = marks[0], marks[-1][1]
    rate = (total - before) / (end - first)
    return {"per_second": rate, "samples": total, "tokens": stats["tokens"], "filled": stats["filled"]}


def _side(name: str, path: Path, options: argparse.Namespace) -> dict[str, float]:
    """Run one side in a separate process; add its wall and CPU time, with start-up."""
    command = [sys.executable, __file__, "--tokenizer", str(options.tokenizer), "--side", name, str(path)]
    start, cpu = time.perf_counter(), _cpu_seconds()
    done = subprocess.run([*command, "--workers", str(options.workers)], check=True, stdout=subprocess.PIPE)
    wall = time.perf_counter() - start
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures | {"wall": wall, "all_cpu": _cpu_seconds() - cpu}


def speed(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time both sides in separate processes: in steady state, and in total with loading and writing."""
    conversation = package_reader(options.package, 800) if options.package else make_writer(options.tokenizer, 800)
    write_rows(folder / "rows.json", conversation, count=options.samples, kinds=options.samples)
    theirs = _side("reference", folder / "rows.json", options)
    ours = _side("ours", folder / "rows.json", options)
    megabytes = (folder / "rows.json").stat().st_size / 1e6
    sides = {"reference": theirs, "ours": ours}
    whole = {
        f"{name}_whole_{unit}_per_second": round(amount / side["wall"], 1)
        for name, side in sides.items()
        for unit, amount in (("samples", options.samples), ("tokens", side["tokens"]), ("megabytes", megabytes))
    }
    return {
        "samples": options.samples,
        "megabytes": round(megabytes, 1),
        "tokens_per_sample": round(theirs["tokens"] / theirs["samples"], 1),
        "workers": options.workers,
        "reference_samples_per_second": round(theirs["per_second"]),
        "ours_samples_per_second": round(ours["per_second"]),
        "times_faster": round(ours["per_second"] / theirs["per_second"], 1),
        "reference_whole_seconds": round(theirs["wall"], 2),
        "ours_whole_seconds": round(ours["wall"], 2),
        "times_faster_whole": round(theirs["wall"] / ours["wall"], 1),
        "reference_samples_per_cpu_second": round(theirs["samples"] / theirs["cpu"]),
        "ours_samples_per_cpu_second_whole": round(ours["samples"] / ours["all_cpu"]),
        "rows_filled": ours["filled"],
        **whole,
    }


def memory(tokenizer: Path, folder: Path, workers: int, megabytes: int) -> dict[str, Any]:
    """Prepare one huge JSON array and watch the memory of all processes together."""
    count = write_rows(folder / "rows.json", make_writer(tokenizer, 800), megabytes=megabytes)
    with Memory() as watch:
        seconds, prepared = timed_prepare(folder / "rows.json", tokenizer, folder / "cache", workers)
    tenths = [max(part) >> 20 for part in np.array_split(np.array(watch.samples), 10)]
    size = sum(path.stat().st_size for path in prepared.iterdir())
    return {
        "input_mb": (folder / "rows.json").stat().st_size >> 20,
        "samples": count,
        "seconds": round(seconds, 1),
        "samples_per_second": round(count / seconds),
        "peak_rss_mb_all_processes": watch.peak >> 20,
        "peak_rss_mb_by_tenth_of_the_run": [int(tenth) for tenth in tenths],
        "output_mb": size >> 20,
    }


def opening(tokenizer: Path, folder: Path, workers: int, count: int) -> dict[str, Any]:
    """Prepare ``count`` short conversations, then time what each rank does at start."""
    write_rows(folder / "rows.json", make_writer(tokenizer, 60), count=count)
    seconds, _ = timed_prepare(folder / "rows.json", tokenizer, folder / "cache", workers)
    again, prepared = timed_prepare(folder / "rows.json", tokenizer, folder / "cache", workers)
    start = time.perf_counter()
    data = open_prepared(prepared)
    data.train[len(data.train) // 2]
    opened = time.perf_counter() - start
    return {
        "samples": count,
        "prepare_seconds": round(seconds, 1),
        "find_again_seconds": round(again, 3),
        "open_and_read_a_row_seconds": round(opened, 4),
        "rows": len(data.train),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with a Qwen tokenizer.json")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--package", help="take the text of this installed package's source files")
    parser.add_argument("--samples", type=int, default=100_000, help="of the speed run")
    parser.add_argument("--memory", type=int, metavar="MB", help="measure memory on this much input instead")
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--open", type=int, metavar="N", help="measure opening N conversations instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.side:
            path = Path(options.side[1])
            is_ours = options.side[0] == "ours"
            result: dict[str, Any] = (
                our_side(path, options.tokenizer, options.workers)
                if is_ours
                else reference_side(path, options.tokenizer)
            )
            print(json.dumps(result))
            return
        if options.memory:
            result = memory(options.tokenizer, Path(name), options.workers, options.memory)
        elif options.open:
            result = opening(options.tokenizer, Path(name), options.workers, options.open)
        else:
            result = speed(options, Path(name))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
