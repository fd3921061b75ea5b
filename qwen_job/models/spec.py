"""What train.yaml says about the model, and where models are cached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, cast, get_args

from qwen_job.errors import ModelError
from qwen_job.facts.model_names import clean_name
from qwen_job.resources import user_cache

Source = Literal["modelscope", "huggingface", "local", "random"]


@dataclass(frozen=True)
class ModelSpec:
    """One model: ``name`` is a hub id, a folder (local) or a name in qwen_job/facts/models/ (random)."""

    name: str
    source: Source
    revision: str | None = None
    cache_dir: Path | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> ModelSpec:
        """Read the ``model`` section of train.yaml: every key present, no other; ModelError otherwise."""
        expected = {field.name for field in fields(cls)}
        for wrong, keys in (("unknown", set(values) - expected), ("missing", expected - set(values))):
            if keys:
                raise ModelError(
                    f"train.yaml: model: {wrong} key {', '.join(sorted(keys))}; "
                    f"it has exactly {', '.join(sorted(expected))}"
                )
        for key, value in values.items():
            if not isinstance(value, str) and not (value is None and key in ("revision", "cache_dir")):
                raise ModelError(f"train.yaml: model.{key}: expected text, found {value!r}")
        if values["source"] not in get_args(Source):
            raise ModelError(f"train.yaml: model.source: {values['source']!r} is none of {', '.join(get_args(Source))}")
        if not values["name"]:
            raise ModelError("train.yaml: model.name: is empty; write a hub id or a folder")
        try:
            name = clean_name(cast(str, values["name"]), cast(str, values["source"]))
        except ValueError as error:
            raise ModelError(f"train.yaml: model.name: {error}") from None
        cache_dir = cast("str | None", values["cache_dir"])
        return cls(
            name=name,
            source=cast(Source, values["source"]),
            revision=cast("str | None", values["revision"]),
            cache_dir=Path(cache_dir) if cache_dir else None,
        )

    @property
    def cache(self) -> Path:
        """The folder shared by all jobs: ``cache_dir``, else $QWEN_JOB_CACHE, else ~/.cache/qwen-job."""
        return cache_folder(self.cache_dir)


def cache_folder(chosen: Path | None = None) -> Path:
    """Return the folder of models in the ``chosen`` cache, else in the user's own."""
    return (chosen or user_cache()).expanduser() / "models"
