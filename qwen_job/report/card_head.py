"""The YAML at the head of a model card, which hubs read: licence, languages, base model, data sets and scores."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_job.atomic import read_limited
from qwen_job.errors import ModelError
from qwen_job.models.fetch import cached_folder
from qwen_job.report.summary import Summary
from qwen_job.run.folder import RunFolder
from qwen_job.run.scores import Comparison, harness_of, read_scores
from qwen_job.run.sections import ModelSpec

_HARNESS_URL = "https://github.com/EleutherAI/lm-evaluation-harness"
# What a licence's text begins with -> its name on the hubs. What is not in their lists is "other", with its own name.
_LICENCES = (
    (r"Apache License\s+Version 2\.0", {"license": "apache-2.0"}),
    (r"MIT License", {"license": "mit"}),
    (r"Tongyi Qianwen RESEARCH LICENSE", {"license": "other", "license_name": "tongyi-qianwen-research"}),
    (r"Tongyi Qianwen LICENSE", {"license": "other", "license_name": "tongyi-qianwen"}),
    (r"Qwen RESEARCH LICENSE", {"license": "other", "license_name": "qwen-research"}),
    (r"Qwen LICENSE", {"license": "other", "license_name": "qwen"}),
)
_FILES = 8  # data files, and
_SAMPLE = 2**20  # bytes of a data file that are read to tell its languages
# A script or a frequent word -> the language; a share of the text below 2% does not count.
_LANGUAGES = {
    "zh": r"[\u4e00-\u9fff]", "ja": r"[\u3040-\u30ff]", "ko": r"[\uac00-\ud7af]", "ru": r"[\u0430-\u044f]",
    "ar": r"[\u0621-\u064a]", "th": r"[\u0e01-\u0e3a]", "en": r"(?i)\b(?:the|and|of|to|is|you)\b",
}  # fmt: skip
_PER_LETTERS = {"en": 0.01}  # of the letters, a twentieth or so of English words are these six
_LEAST = 0.02


def head_of(summary: Summary, published: Sequence[str]) -> dict[str, Any]:
    """Return the head's values, in the order in which hubs show them. ``published``: data sets by name."""
    section = summary.section("model")
    from_hub = section.get("source") in ("modelscope", "huggingface")
    name = str(section.get("name") or "unknown").rstrip("/")
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["qwen", "chat"]}
    head |= licence_of(summary)
    if languages := languages_of(_texts(summary)):
        head["language"] = languages
    # A path means nothing to others, and may disclose too much.
    head["base_model"] = name if from_hub else "local"
    if published:
        head["datasets"] = list(published)
    if results := read_scores(summary.evaluation):
        head["model-index"] = [{"name": summary.name, "results": _results(results, harness_of(summary.evaluation))}]
    return head


def _results(results: Sequence[Comparison], harness: str) -> list[dict[str, Any]]:
    """Return scores after training as hubs read them, a task each with its metrics."""
    found: dict[str, dict[str, Any]] = {}
    for one in results:
        task = found.setdefault(one.task, {
            "task": {"type": "text-generation", "name": "Text Generation"},
            "dataset": {"type": one.task, "name": one.task},
            "metrics": [],
            "source": {"name": harness or "lm-eval", "url": _HARNESS_URL},
        })  # fmt: skip
        shots = "" if one.few_shot is None else f", {one.few_shot}-shot"
        metric = {"type": one.metric.partition(",")[0], "name": f"{one.metric}{shots}", "value": round(one.after, 6)}
        task["metrics"].append(metric)
    return list(found.values())


def licence_of(summary: Summary) -> dict[str, str]:
    """Return the licence of the base model by its LICENSE file, empty where there is none or it is not known."""
    folders = [RunFolder(summary.folder).model, *_base_folders(summary.section("model"))]
    for path in (found for folder in folders if folder.is_dir() for found in sorted(folder.glob("LICENSE*"))):
        try:
            text = " ".join(read_limited(path, _SAMPLE).decode("utf-8", "replace").split())[:2000]
        except (OSError, ValueError):
            continue
        for pattern, names in _LICENCES:
            if re.search(pattern, text):
                return names
    return {}


def _base_folders(section: Mapping[str, Any]) -> list[Path]:
    try:
        spec = ModelSpec.read(dict(section))
        if spec.source == "random":
            return []
        return [Path(spec.name).expanduser() if spec.source == "local" else cached_folder(spec)]
    except (ModelError, RuntimeError):
        return []


def _texts(summary: Summary) -> str:
    """Return the beginning of the training data's text files, escapes of JSON resolved."""
    rows = summary.section("data").get("train")
    listed = [one.get("path") for one in rows if isinstance(one, dict)] if isinstance(rows, list) else []
    paths = [Path(str(path)) for path in listed[:_FILES] if path and Path(str(path)).suffix in (".json", ".jsonl")]
    texts = []
    for path in paths:
        try:
            with path.open("rb") as file:
                texts.append(file.read(_SAMPLE).decode("utf-8", "ignore"))
        except OSError:
            continue
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), "\n".join(texts))


def languages_of(text: str) -> list[str]:
    """Return the languages of a text that its scripts and most frequent words tell, the most frequent first."""
    letters = sum(character.isalpha() for character in text)
    shares = {
        name: len(re.findall(pattern, text)) / letters if letters else 0.0 for name, pattern in _LANGUAGES.items()
    }
    ordered = sorted(shares, key=shares.__getitem__, reverse=True)
    found = [name for name in ordered if shares[name] >= _PER_LETTERS.get(name, _LEAST)]
    # Japanese is written with Chinese characters too.
    return [name for name in found if not (name == "zh" and "ja" in found)]
