"""The small types that job.yaml is made of: text that fits one line, paths, durations, sizes."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

from qwen_job.facts.data_names import is_name, parse
from qwen_job.job.slurm_time import slurm_seconds

# Patterns are text: re compiles and caches each one when a job first needs it.
_CONTROL = r"[\x00-\x1f\x7f\x85\u2028\u2029]"
_DURATION = r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?"
_CLOCK = r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?"
_TWO_PARTS = r"\d+:\d\d"
# Linux allows 15 characters of an interface's name.
_INTERFACES = r"\^?=?[A-Za-z0-9_.@-]{1,15}(,[A-Za-z0-9_.@-]{1,15})*"
ENV_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_NO_PLUGINS = "PYDANTIC_DISABLE_PLUGINS"
# Linux cannot start a program with a longer variable (MAX_ARG_STRLEN is 128 KiB including name and NUL).
_MAX_ENV_BYTES = 100_000
# Reserved by bash: exporting one fails or has no effect.
_OF_BASH = (
    r"_|UID|EUID|PPID|SHELLOPTS|BASH.*|RANDOM|SRANDOM|SECONDS|EPOCH(SECONDS|REALTIME)|LINENO|FUNCNAME|GROUPS|DIRSTACK"
    r"|PIPESTATUS|HISTCMD|OPTIND|OPTARG|OPTERR|OLDPWD|PWD|SHLVL|IFS|COMP_.*"
)


class Strict(BaseModel):
    """Base of every section: no type coercion, no unknown fields, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True, defer_build=True)

    @classmethod
    def model_rebuild(cls, **options: Any) -> bool | None:
        """Build the validator at first use, without searching all installed packages for pydantic plugins."""
        before = os.environ.get(_NO_PLUGINS)
        os.environ[_NO_PLUGINS] = "__all__"
        try:
            return super().model_rebuild(**options)
        finally:
            del os.environ[_NO_PLUGINS]
            if before is not None:
                os.environ[_NO_PLUGINS] = before


def section() -> Any:
    """Return the default of an optional section: an empty one, validated with the whole job."""
    return Field(default_factory=dict)


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("contains a NUL character, which shells and file names cannot contain; remove it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("contains half a character (a lone surrogate); write the text in UTF-8") from None
    return text


def _one_line(text: str) -> str:
    found = None if _storable(text).isprintable() else re.search(_CONTROL, text)
    if found:
        raise ValueError(f"contains the control character {found[0]!r}; write it on one line, without it")
    return text


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


def _env_name(text: str) -> str:
    if not re.fullmatch(ENV_NAME, text):
        raise ValueError(f"{text!r} is not a valid variable name: use letters, digits and _, and no digit first")
    if re.fullmatch(_OF_BASH, text):
        raise ValueError(f"{text} is reserved by bash, which starts the processes; choose another name")
    return text


def _env_value(text: str) -> str:
    if len(_storable(text).encode()) > _MAX_ENV_BYTES:
        raise ValueError(f"is over {_MAX_ENV_BYTES // 1000} kB, the limit for starting a process; put it in a file")
    return text


def _scalar_to_text(value: Any) -> Any:
    """Accept numbers and booleans as text: ``OMP_NUM_THREADS: 4``, ``FLAG: true``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (int, float)) else value


def _number_to_text(value: Any) -> Any:
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _option_value(value: str | bool | None) -> str | bool | None:
    return _one_line(value) if isinstance(value, str) else value


def seconds(value: Any) -> Any:
    """Read a duration: ``90`` (seconds), ``2h30m``, ``1d``, ``hours:minutes:seconds`` or ``days-hours:minutes``."""
    if isinstance(value, bool) or not isinstance(value, str):
        return value
    if re.fullmatch(_TWO_PARTS, value):
        raise ValueError(f"{value} can be hours and minutes or minutes and seconds: {_both_readings(value)}")
    found = re.fullmatch(_CLOCK, value) or re.fullmatch(_DURATION, value)
    if not found or not value:
        raise ValueError(f"{value!r} is not a duration: write 90s, 5m, 2h30m, 12:30:00 or 1-00:00:00{_meant(value)}")
    days, hours, minutes, secs = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + secs


def _meant(value: str) -> str:
    """Return what a duration in another spelling is here: ``5min`` is 5m."""
    found = re.fullmatch(r"(\d+)\s*([dhms])\w*", value.strip(), re.IGNORECASE)
    return f"; did you mean '{found[1]}{found[2].lower()}'?" if found else ""


def _both_readings(clock: str) -> str:
    """Return what to write for ``12:30``, which Slurm reads as minutes and seconds, and other programs as hours."""
    first, second = (int(part) for part in clock.split(":"))
    return f"write {first}h{second}m or {first}m{second}s" if second else f"write {first}h or {first}m"


def unclear_time(text: str) -> str:
    """Return how sbatch reads a time limit that looks like hours and minutes, and what to write; empty otherwise."""
    if not re.fullmatch(_TWO_PARTS, text):
        return ""
    return f"{text} is read as sbatch reads it, as minutes and seconds; {_both_readings(text)} to say which"


def _slurm_time(value: Any) -> Any:
    """Read ``2h30m`` or sbatch's formats. A number alone is refused: sbatch counts minutes, others seconds or hours."""
    if re.fullmatch(r"\d+", str(value)) and not isinstance(value, bool):
        raise ValueError(f"{value} has no unit, and sbatch would read minutes: write {value}h, {value}m or {value}s")
    if not isinstance(value, str) or not (":" in value or "-" in value):
        return seconds(value)
    read = slurm_seconds(value)
    if read is None:
        raise ValueError(f"{value!r} is not a Slurm time: write 2h30m, 12:30:00, 1-00:00:00 or 90:00 (minutes first)")
    return read


def _clock(value: int) -> str:
    """Write seconds as sbatch's ``hours:minutes:seconds``, which :func:`_slurm_time` reads."""
    return f"{value // 3600:02}:{value // 60 % 60:02}:{value % 60:02}"


def _interfaces(text: str) -> str:
    if not re.fullmatch(_INTERFACES, text):
        raise ValueError(
            f"{text[:80]!r} names no network interfaces: write eth0, a list of prefixes (ens,eth), =eth0 for a whole "
            "name, or ^docker,lo for all but those, as in NCCL_SOCKET_IFNAME"
        )
    return text


def _at_home(text: str) -> str:
    """Expand a leading ``~``, which nothing expands later: scripts quote every value."""
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:
        raise ValueError(f"{text!r}: no such user; write the folder in full") from None


def _data_name(text: str) -> str:
    if is_name(text):
        parse(text)
    return text


Text = Annotated[str, AfterValidator(_one_line), AfterValidator(_not_empty)]
# A path on the nodes that is used as written.
Place = Annotated[Text, AfterValidator(_at_home)]
DataPath = Annotated[Text, AfterValidator(_data_name)]
FreeText = Annotated[str, AfterValidator(_storable)]
Interfaces = Annotated[str, AfterValidator(_interfaces)]
EnvName = Annotated[str, AfterValidator(_env_name)]
EnvValue = Annotated[str, BeforeValidator(_scalar_to_text), AfterValidator(_env_value)]
# An option of sbatch or srun: text or a number; null or true for a flag; false removes a planned option.
OptionValue = Annotated[str | bool | None, BeforeValidator(_number_to_text), AfterValidator(_option_value)]
Seconds = Annotated[int, BeforeValidator(seconds), Field(ge=0)]
SlurmTime = Annotated[
    int,
    BeforeValidator(_slurm_time),
    Field(ge=0),
    PlainSerializer(_clock, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string"}),
]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
