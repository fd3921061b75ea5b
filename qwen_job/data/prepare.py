"""Prepare conversation files as a folder of memory-mapped packed rows: once, for all ranks and later runs."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qwen_job.atomic import sha256_of
from qwen_job.chat.chosen import AUTO, CHATML, choose
from qwen_job.chat.traits import traits_of
from qwen_job.data.assemble import Assembler
from qwen_job.data.chunk_encoder import Task
from qwen_job.data.embedding import refuse_larger
from qwen_job.data.held_out import keep_held_out
from qwen_job.data.prepared import (
    LAYOUT,
    SPLITS,
    TOKENIZER_SIZE,
    describe,
    describe_template,
    open_prepared,
    read_index,
)
from qwen_job.data.rows import CHUNK_BYTES, assert_file, read_chunks
from qwen_job.data.worker import Worker, Workers, make_encoder, make_setup, no_collection
from qwen_job.errors import DataError, EnvironmentFault
from qwen_job.facts.thinking import resolved_empty_think
from qwen_job.lock import FileLock
from qwen_job.run.config import TrainConfig
from qwen_job.run.sections import DataSpec, plain

_LOG = logging.getLogger(__name__)
# Inputs up to this size are prepared in this process, because starting workers would take longer.
_SMALL = 2 << 20
_HASHED_WHOLE = 64 << 20
_SAMPLE = 64 << 10
_ELSEWHERE = "choose another folder (--output; a job's is data.cache_dir)"


def ready_rows(config: TrainConfig, model: Path, log: Callable[[str], None]) -> Path:
    """Return the folder of a run's packed rows, tokenized for ``model``; see :func:`prepare_data`."""
    folder = prepare_data(config.data, model, config.data.cache_dir or config.folder.prepared)
    index = read_index(folder)
    for line in [*(describe_template(index) if index else []), *describe(open_prepared(folder).stats)]:
        log(f"data: {line}")
    if count := keep_held_out(config.data, folder, config.folder):
        log(f"data: {count} held-out rows are in {config.folder.held_out}")
    return folder


def prepare_data(
    spec: DataSpec,
    tokenizer_dir: Path,
    cache_root: Path,
    *,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Return the folder of prepared data for ``spec``, which ``open_prepared`` reads; prepare it if it does not exist.

    The folder's name is a hash of the files' contents, the settings and the tokenizer. Any number of processes and
    nodes may call this at once: one does the work, the others wait. A killed run leaves nothing that looks complete.

    Args:
        workers: number of processes; default ``spec.num_workers``, or one per core that this process may use.
        progress: called with the number of samples done so far.

    Raises:
        DataError: a row is invalid; the message names file and row.
        EnvironmentFault: the disk is full or a permission is missing.
    """
    folder = cache_root / fingerprint(spec, tokenizer_dir)
    if index := read_index(folder):
        refuse_larger(tokenizer_dir, index[TOKENIZER_SIZE])  # the folder may have been prepared for another model
        return folder
    try:
        cache_root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"{cache_root}: cannot be created: {error.strerror}; {_ELSEWHERE}") from error
    with FileLock(folder.with_suffix(".lock"), lambda: read_index(folder) is not None, remove=True) as held:
        if held:
            _prepare_here(spec, tokenizer_dir, folder, workers or spec.num_workers or cores(), progress)
    return folder


def fingerprint(spec: DataSpec, tokenizer_dir: Path) -> str:
    """Return the name of the prepared folder: the same for equal inputs and settings, wherever the files are."""
    settings = plain(spec)
    for key in ("cache_dir", "num_workers"):
        settings.pop(key)
    chosen = choose(spec.template, tokenizer_dir)
    # Not its place: a template of the same text makes the same tokens.
    settings["template"] = chosen.template.sha256 if chosen.template else [CHATML, chosen.system_prompt]
    for split in SPLITS:
        entries = getattr(spec, split)
        settings[split] = [[_identity(file.path), file.path.suffix, file.weight] for file in entries]
    tokenizer = _digest(tokenizer_dir / "tokenizer.json") if (tokenizer_dir / "tokenizer.json").is_file() else None
    text = json.dumps([LAYOUT, settings, tokenizer], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _identity(path: Path) -> list[Any]:
    """Identify a file's contents by its hash; a large file by its size, time and the hash of samples."""
    assert_file(path)
    status = path.stat()
    if status.st_size <= _HASHED_WHOLE:
        return [_digest(path)]
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for part in range(257):
            stream.seek((status.st_size - _SAMPLE) * part // 256)
            digest.update(stream.read(_SAMPLE))
    return [status.st_size, status.st_mtime_ns, digest.hexdigest()]


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be read: {error.strerror}") from error


def cores(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return the cores that this process may use: those it is bound to, or fewer where its container has a limit."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = limit.read_text("ascii").split()
        return max(1, min(here, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return here


def _prepare_here(
    spec: DataSpec, tokenizer_dir: Path, folder: Path, workers: int, progress: Callable[[int], None] | None
) -> None:
    for left in folder.parent.glob(f"{folder.name}.partial-*"):
        _LOG.warning("removing %s, left by a killed run", left)
        shutil.rmtree(left, ignore_errors=True)
    partial = folder.with_name(f"{folder.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir()
        before = [_identity(file.path) for file in (*spec.train, *spec.eval)]
        date = datetime.date.today()
        assembler = Assembler(spec, partial, template_record(spec, tokenizer_dir, date))
        _encode(spec, make_setup(spec, tokenizer_dir, partial, date), workers, assembler, progress)
        if before != [_identity(file.path) for file in (*spec.train, *spec.eval)]:
            raise DataError("a data file changed while it was being read; run again when it is complete")
        assembler.finish()
        shutil.rmtree(folder, ignore_errors=True)  # an older layout, or damaged: it has no valid index
        partial.rename(folder)
    except OSError as error:
        raise EnvironmentFault(f"{partial}: cannot be written: {error.strerror or error}; "
                               f"free space, or {_ELSEWHERE}") from error  # fmt: skip
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def template_record(spec: DataSpec, tokenizer_dir: Path, date: datetime.date) -> dict[str, Any]:
    """Return what index.json keeps of the chat template: its texts, and what it does with thinking.

    Keys: words (for people), texts (by name; none for ChatML), sha256, date (its today), system_prompt (of ChatML),
    empty_think and why, has_switch.
    """
    template, system_prompt = choose(spec.template, tokenizer_dir, date)
    if template is None:
        told = system_prompt if spec.system_prompt is None else spec.system_prompt
        return _NO_TEMPLATE | {"date": date.isoformat(), "system_prompt": told}
    traits = traits_of(template)
    empty_think, why = resolved_empty_think(spec.empty_think, traits.thinking)
    where = "the model's own" if spec.template == AUTO else template.source
    return {
        "words": f"{where} (sha256 {template.sha256[:12]})",
        "texts": template.texts,
        "sha256": template.sha256,
        "date": date.isoformat(),
        "system_prompt": spec.system_prompt,
        "empty_think": empty_think,
        "why": why if traits.thinks else "",
        "has_switch": traits.has_switch,
    }


_NO_TEMPLATE: dict[str, Any] = {"words": "ChatML", "texts": {}, "sha256": "", "empty_think": "omit", "why": "",
                                "has_switch": False}  # fmt: skip


def _tasks(spec: DataSpec) -> Iterator[Task]:
    number = 0
    for split in SPLITS:
        for index, file in enumerate(getattr(spec, split)):
            for chunk in read_chunks(file.path, CHUNK_BYTES):
                yield Task(number, split, index, chunk)
                number += 1


def _encode(
    spec: DataSpec,
    setup: dict[str, Any],
    workers: int,
    assembler: Assembler,
    progress: Callable[[int], None] | None,
) -> None:
    """Encode all chunks; they are appended to the shards in input order, whichever worker finishes first."""
    size = sum(file.path.stat().st_size for file in (*spec.train, *spec.eval))
    tasks = _tasks(spec)
    report = _Reporter(assembler, progress)
    if workers == 1 or size <= _SMALL:
        encoder = make_encoder(setup)
        with no_collection():
            for task in tasks:
                report(task.number, encoder.encode(task))
        return
    with Workers(setup, workers) as pool:
        _run_pool(pool, tasks, report)


class _Reporter:
    def __init__(self, assembler: Assembler, progress: Callable[[int], None] | None) -> None:
        self._assembler, self._progress = assembler, progress
        self._samples = 0

    def __call__(self, number: int, counts: dict[str, int]) -> None:
        self._assembler.add(number, counts)
        self._samples += sum(counts[f"{split}_samples"] for split in SPLITS if f"{split}_samples" in counts)
        if self._progress:
            self._progress(self._samples)


def _run_pool(pool: list[Worker], tasks: Iterator[Task], report: Callable[[int, dict[str, int]], None]) -> None:
    """Drive each worker from its own thread; the next chunk is read only when a worker is free."""
    lock = threading.Lock()
    failures: list[BaseException] = []

    def drive(worker: Worker) -> None:
        try:
            while True:
                with lock:
                    task = None if failures else next(tasks, None)
                if task is None:
                    return
                counts = worker.encode(task)
                with lock:
                    report(task.number, counts)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=drive, args=(worker,), daemon=True) for worker in pool]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
