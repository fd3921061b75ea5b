"""What the commands of ``qwen-job data`` read: data files with options, or a job.yaml that has both."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from qwen_job.cli.data_options import files_of
from qwen_job.cli.job_options import say, show_words
from qwen_job.errors import EnvironmentFault, UsageError
from qwen_job.facts.data_names import is_name

if TYPE_CHECKING:
    from qwen_job.chat.chosen import Chosen
    from qwen_job.chat.samples import SampleMaker
    from qwen_job.data.check import Examiner
    from qwen_job.data.encode import ChatTokenizer
    from qwen_job.job import Job
    from qwen_job.job.model import DataFile

_SUFFIXES = (".yaml", ".yml")
_CHAT = ("system_prompt", "learn", "thinking", "empty_think", "several_thoughts")


@dataclass
class Reading:
    """Data files, and how they are read.

    Attributes:
        files: the data files, those of a job's data.train and data.eval in place of the job.
        options: the parameters of the command that say how rows are read; a job's settings where the user gave none.
        job: the job, if one is given.
        quick: load the tokenizer in the way that is fastest for one row.
        notes: what the user should know about the model of the job.
    """

    files: list[Path]
    options: dict[str, Any]
    job: Job | None = None
    quick: bool = False
    notes: list[str] = field(default_factory=list)

    @cached_property
    def model(self) -> Path | None:
        """The folder with the tokenizer and the chat template, None if no model is given."""
        from qwen_job.models.chat_files import chat_files

        name = self.options["model"]
        if name is not None:
            return chat_files(name, say)
        return self._model_of_job(self.job) if self.job else None

    @cached_property
    def chosen(self) -> Chosen:
        """The chat template."""
        from qwen_job.chat.chosen import AUTO, CHATML, choose

        template = self.options["template"]
        return choose(CHATML if template == AUTO and self.model is None else template, self.model or Path())

    @cached_property
    def tokenizer(self) -> ChatTokenizer | None:
        """The model's tokenizer, None if no model is given."""
        if self.model is None:
            return None
        from qwen_job.data.encode import ChatTokenizer
        from qwen_job.data.encoder import load_encoder

        return ChatTokenizer.load(self.model, self._words) if self.quick else load_encoder(self.model, self._words)

    @cached_property
    def maker(self) -> SampleMaker | None:
        """What makes samples with the chat template; None if neither model nor template is known: any text is fine."""
        return self.any_maker if self._knows_template else None

    @cached_property
    def any_maker(self) -> SampleMaker:
        """The same, with ChatML for want of a model."""
        from qwen_job.chat.settings import ChatSettings
        from qwen_job.data.makers import WORDS, sample_maker

        return sample_maker(
            self.chosen,
            ChatSettings(**{name: self.options[name] for name in _CHAT}),
            self.tokenizer,
            WORDS if self.model is None else self._words,
            **({} if self._knows_template else self._for_want_of_a_model),
            mask=self.job.data.mask if self.job else "assistant",
        )

    @property
    def _for_want_of_a_model(self) -> dict[str, str]:
        """How messages name ChatML, and what they say to do."""
        from qwen_job.data.makers import CHATML_SOURCE

        why = "the model's files are not here" if self.job else "no model is given"
        another = "name the model with --model FOLDER|ID, or its template with --template FILE"
        return {"source": f"{CHATML_SOURCE}, as {why}", "another": another}

    @property
    def _knows_template(self) -> bool:
        random = self.job is not None and self.job.model.resolved_source == "random"
        return self.model is not None or self.options["template"] != "auto" or random

    @property
    def _words(self) -> frozenset[str]:
        """The tokens that the model has for words of its template."""
        from qwen_job.data.writers import template_words

        template = self.chosen.template
        return template_words(template, self.model) if template and self.model else frozenset()

    def examiner(self) -> Examiner:
        """Return what examines rows."""
        from qwen_job.data.check import Examiner
        from qwen_job.data.rules import Limits

        longest = self.options.get("max_length", sys.maxsize)
        return Examiner(
            self.options["layout"],
            Limits(self.options.get("max_turn_tokens") or longest, longest),
            self.tokenizer,
            self.maker,
            turn_order=self.options["turn_order"],
            ignore_keys=self.options["ignore_keys"],
            thinking=self.options["thinking"],
        )

    def show_notes(self) -> None:
        """Print the notes to stderr."""
        show_words(tuple(self.notes))

    def _model_of_job(self, job: Job) -> Path | None:
        from qwen_job.models.chat_files import fetch_chat_files
        from qwen_job.run.sections import ModelSpec

        source = job.model.resolved_source
        if source == "random":
            return None
        if source == "local":
            return Path(job.model.name)
        cache = Path(job.model.cache_dir) if job.model.cache_dir else None
        values = {"name": job.model.name, "source": source, "revision": job.model.revision, "cache_dir": cache}
        try:
            return fetch_chat_files(ModelSpec.read(values), say)
        except EnvironmentFault as error:
            self.notes.append(f"without the model's tokenizer and chat template, because {error}")
            return None


def reading_of(named: Sequence[str | Path], options: dict[str, Any]) -> Reading:
    """Return what to read; ``named``: data files or names of data, or one job.yaml.

    Raises:
        UsageError: a job.yaml is given with other files.
        JobError: the job is invalid.
    """
    jobs = [path for path in named if isinstance(path, Path) and path.suffix in _SUFFIXES]
    if not jobs:
        return Reading(files_of(named), options)
    if len(named) > 1:
        raise UsageError(f"{jobs[0]}: give a job alone: its files and settings are read from it")
    from qwen_job.api.job_template import check_template
    from qwen_job.job import load_job

    job = load_job(jobs)
    show_words(check_template(job))
    files = [path for file in (*job.data.train, *job.data.eval) for path in _files(job, file)]
    return Reading(files, options | _unless_given(_settings(job), options), job)


def _files(job: Job, file: DataFile) -> list[Path]:
    if not is_name(file.path):
        return [Path(file.path)]
    from qwen_job.data.sources import Source, fetch_data
    from qwen_job.job.paths import source_cache

    return fetch_data(Source(file.path, file.revision, source_cache(job)), say).files


def _settings(job: Job) -> dict[str, Any]:
    data = job.data
    settings = {name: getattr(data, name) for name in ("template", *_CHAT)}
    return settings | {
        "layout": data.format,
        "turn_order": data.turn_order,
        "ignore_keys": tuple(data.ignore_keys),
        "max_length": job.train.model_max_length,
    }


def _unless_given(settings: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that this command has as options, without those that the user gave on the command line."""
    source = click.get_current_context().get_parameter_source
    return {name: value for name, value in settings.items()
            if name in options and source(name) == ParameterSource.DEFAULT}  # fmt: skip
