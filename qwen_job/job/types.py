"""The small types that job.yaml is made of: text that fits one line, paths, durations, sizes."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Strict(BaseModel):
    """Base of every section: types are not coerced, unknown fields are refused, values do not change afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character, which no shell and no file name can carry; remove it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a character (a lone surrogate); write the text in UTF-8") from None
    return text


def _one_line(text: str) -> str:
    found = _CONTROL.search(_storable(text))
    if found:
        raise ValueError(f"holds the control character {found[0]!r}; write it on one line, without it")
    return text


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


def _env_name(text: str) -> str:
    if not _ENV_NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a variable's name: use letters, digits and _, not a digit first")
    return text


def _scalar_to_text(value: Any) -> Any:
    """Let ``OMP_NUM_THREADS: 4`` and ``FLAG: true`` stand for their text, as every env section does."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (int, float)) else value


def seconds(value: Any) -> Any:
    """Read a duration: ``90`` (seconds), ``2h30m``, ``1d``, or Slurm's ``[days-]hours:minutes[:seconds]``."""
    if isinstance(value, bool) or not isinstance(value, str):
        return value
    found = _CLOCK.fullmatch(value) or _DURATION.fullmatch(value)
    if not found or not value:
        raise ValueError(f"{value!r} is not a duration: write 2h30m, 12:30:00, 1-00:00:00 or seconds")
    days, hours, minutes, secs = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + secs


Text = Annotated[str, AfterValidator(_one_line), AfterValidator(_not_empty)]
FreeText = Annotated[str, AfterValidator(_storable)]
EnvName = Annotated[str, AfterValidator(_env_name)]
EnvValue = Annotated[str, BeforeValidator(_scalar_to_text), AfterValidator(_storable)]
OptionValue = Annotated[str | None, BeforeValidator(_scalar_to_text), AfterValidator(lambda v: v and _one_line(v))]
Seconds = Annotated[int, BeforeValidator(seconds), Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
