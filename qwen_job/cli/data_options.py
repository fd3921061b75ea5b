"""Options that the commands of ``qwen-job data`` share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import click

from qwen_job.cli.job_options import Option, option_group, say
from qwen_job.errors import DataError, UsageError
from qwen_job.facts import choices
from qwen_job.facts.data_names import is_name, parse
from qwen_job.limits import MAX_LENGTH

FILE = click.Path(path_type=Path)


class DataFiles(click.Path):
    """A path, or a name of data: hf:OWNER/NAME[:SPLIT], ms:OWNER/NAME[:SPLIT], an address."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a name as text, because a path would lose one of its slashes; anything else as a path."""
        if isinstance(value, str) and is_name(value):
            try:
                parse(value)
            except ValueError as error:
                raise DataError(str(error)) from None
            return value
        return super().convert(value, param, ctx)


DATA = DataFiles(path_type=Path)


def files_of(named: Iterable[str | Path]) -> list[Path]:
    """Return paths as they are and, in place of names, their files, which are fetched into the user's cache."""
    listed = list(named)
    if not any(isinstance(one, str) for one in listed):
        return [Path(one) for one in listed]
    from qwen_job.data.sources import local_files

    return local_files(listed, None, say)


def file_of(named: str | Path) -> Path:
    """Return the one file of a path or name.

    Raises:
        UsageError: a name has several.
    """
    files = files_of([named])
    if len(files) > 1:
        paths = "\n".join(map(str, files))
        raise UsageError(f"{named}: has {len(files)} files; give one of them:\n{paths}")
    return files[0]


def choice_option(name: str, choice: Any, default: str, about: str) -> Option:
    """Return an option with the values and the name of a field of job.yaml; ``choice``: a Literal of its values."""
    values = click.Choice(get_args(choice))
    return click.option(name, type=values, default=default, show_default=True, help=about)


# How rows are read.
layout_options = option_group(
    click.option("--ignore-key", "ignore_keys", multiple=True, metavar="KEY",
                 help="Ignore this key in rows and turns (repeatable; data.ignore_keys)."),
    choice_option(
        "--turn-order", choices.TurnOrder, "strict",
        "What to do with turns that do not alternate: reject them, treat them as finetune.py does, or join them "
        "(data.turn_order).",
    ),
    click.option("--format", "layout", type=click.Choice(get_args(choices.Format)), default="auto",
                 help="Format of the rows."),
)  # fmt: skip

# How conversations are rendered, and what of them is learnt.
chat_options = option_group(
    click.option("--template", default="auto", show_default=True, metavar="auto|chatml|FILE",
                 help="Chat template: the model's own, ChatML, or a Jinja file."),
    click.option("--system-prompt", help="System prompt for rows without one [default: the template's]."),
    choice_option("--learn", choices.Learn, "all", "Which answers are learnt."),
    choice_option("--thinking", choices.Thinking, "keep", "What to do with reasoning."),
    choice_option(
        "--empty-think", choices.EmptyThink, "auto",
        "Answers without reasoning, on a model that thinks: learn, mask or omit the empty block.",
    ),
    choice_option(
        "--several-thoughts", choices.SeveralThoughts, "split",
        "Where the template drops earlier reasoning: split the row, or train it as one.",
    ),
)  # fmt: skip

model_option = click.option(
    "--model",
    "--tokenizer",
    "model",
    metavar="FOLDER|ID",
    help="Model folder, or hub ID, for its chat template and exact counts of tokens.",
)

# How rows are read, rendered and measured.
reading_options = option_group(
    click.option("--max-length", type=click.IntRange(1), default=MAX_LENGTH, show_default=True,
                 help="Maximum tokens per row."),
    click.option("--max-turn-tokens", type=click.IntRange(1),
                 help="Tokens from which a turn is reported [default: --max-length]."),
    model_option,
    chat_options,
    layout_options,
)  # fmt: skip
