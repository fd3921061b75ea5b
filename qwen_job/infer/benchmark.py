"""A suite's scores of a trained model and of the model before training, which are kept for other runs from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen_job.atomic import sha256_of
from qwen_job.errors import QwenJobError
from qwen_job.infer.answer import device_and_dtype
from qwen_job.infer.chat import quiet
from qwen_job.infer.comparing import Score, compare
from qwen_job.infer.evaluate import first_model
from qwen_job.infer.harness import harness_version, score_folder
from qwen_job.infer.source import ChosenModel, find_model
from qwen_job.infer.suite import Suite
from qwen_job.run.reading import read_object
from qwen_job.storage import cache_folder, write_json

Notify = Callable[[str], None]


def benchmark(path: Path, suite: Suite, *, before: bool = True, progress: Notify) -> dict[str, Any]:
    """Return ``scores`` of evaluation.json for the model of a run folder or a model folder.

    The scores before training are measured once for each model, suite and device: later runs from the same model read
    them from the cache.

    Raises:
        QwenJobError: there is no model, lm-eval is not installed, or a task or its data cannot be had.
    """
    target, suite = find_model(path), suite.complete()
    harness = harness_version(suite)
    quiet()
    after = _scores(target.model, suite, progress)
    first = first_model(target, progress) if before else None
    earlier = _before(first, target, suite, harness, after, progress) if first else None
    results = [one.to_dict() for one in compare(earlier, after)]
    return {"harness": harness, "suite": suite.to_dict(), "results": results}


def _scores(folder: Path, suite: Suite, progress: Notify) -> list[Score]:
    progress(f"scoring {folder} on {', '.join(suite.tasks)}")
    return score_folder(folder, suite)


def _before(
    folder: Path, target: ChosenModel, suite: Suite, harness: str, after: list[Score], progress: Notify
) -> list[Score]:
    place = _cache(target) / f"{_model_key(folder)}-{suite.key(harness)}.json"
    cached = _read(place)
    # The rows of a task by name may have changed on their hub since.
    if cached and _same_questions(cached, after):
        progress(f"scores before training: from {place}")
        return cached
    scores = _scores(folder, suite, progress)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, {"model": str(folder), "harness": harness, "scores": [one.to_dict() for one in scores]})
    except (OSError, QwenJobError) as error:
        progress(f"the scores before training are not kept for other runs: {error}")
    return scores


def _cache(target: ChosenModel) -> Path:
    chosen = target.section("model").get("cache_dir")
    return cache_folder(Path(str(chosen)) if chosen else None).parent / "scores"


def _model_key(folder: Path) -> str:
    """Return a hash of a model folder: its JSON files, the size and time of every other, and the device's precision."""
    digest = hashlib.sha256(repr(device_and_dtype()).encode())
    for path in sorted(one for one in folder.iterdir() if one.is_file()):
        status = path.stat()
        content = sha256_of(path) if path.suffix == ".json" else f"{status.st_size} {status.st_mtime_ns}"
        digest.update(f"{path.name}\0{content}\n".encode())
    return digest.hexdigest()[:16]


def _read(place: Path) -> list[Score]:
    """Return the cached scores, empty where there are none or the file is damaged."""
    listed = read_object(place).get("scores")
    try:
        return [Score(**one) for one in listed] if isinstance(listed, list) else []
    except TypeError:
        return []


def _same_questions(cached: list[Score], after: list[Score]) -> bool:
    questions = [{(one.task, one.metric): (one.samples, frozenset(one.answers)) for one in scores}
                 for scores in (cached, after)]  # fmt: skip
    return questions[0] == questions[1]
