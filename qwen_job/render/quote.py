"""The one place that quotes: every value that reaches a shell, an #SBATCH line, YAML, JSON or a DeepSpeed file.

Each function returns text that the format reads back as the very value that went in, or raises
:class:`Unrepresentable` because the format cannot hold it.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import yaml

_PLAIN_SBATCH = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
_PLAIN_YAML = re.compile(r"[A-Za-z_/][A-Za-z0-9_./@+-]*")
# Words that some YAML 1.1 or 1.2 reader takes for something other than text.
_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}
_DEEPSPEED_ENV_UNSAFE = re.compile(r'["$`\\\x00-\x1f\x7f\x85\u2028\u2029]')
# Slurm 22.05 refuses a longer comment ("Pathname of a file, directory or other parameter too long").
_MAX_SBATCH_BYTES = 1000


class Unrepresentable(ValueError):
    """The format cannot hold ``value``; the message says why, without the value's place."""

    def __init__(self, message: str, value: Any) -> None:
        super().__init__(message)
        self.value = value


class Quoted(str):
    """Text that has been through one of these functions: the only text that a template may print."""

    __slots__ = ()


def sh(value: Any) -> str:
    """Quote one word for a POSIX shell. Newlines are kept; NUL is refused."""
    text = str(value)
    if "\0" in text:
        raise Unrepresentable("holds a NUL character, which no shell can carry", value)
    return shlex.quote(text)


def sh_words(values: list[Any]) -> str:
    """Quote several words and join them with spaces."""
    return " ".join(sh(value) for value in values)


def sbatch(value: Any) -> str:
    r"""Quote a value for an ``#SBATCH --option=value`` line.

    Slurm reads such a line itself: it splits at white space, takes ``#`` for a comment, and inside double quotes knows
    ``\\`` as the escape of itself and of the quote. (An escaped space outside of quotes still splits: tried on 22.05.)
    """
    text = str(value)
    if re.search(r"[\x00-\x1f\x7f\x85\u2028\u2029]", text):
        raise Unrepresentable("holds a control character, which an #SBATCH line cannot carry", text)
    if len(text.encode()) > _MAX_SBATCH_BYTES:
        raise Unrepresentable(f"is over {_MAX_SBATCH_BYTES} bytes, more than Slurm takes", text)
    if _PLAIN_SBATCH.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def shell_comment(value: Any) -> str:
    """Return text for the inside of a ``#`` comment: control characters become spaces."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", " ", str(value)).strip()


def heredoc(text: str, stem: str = "END") -> str:
    """Return ``text`` as the quoted here-document that follows ``<<``: nothing in it is expanded."""
    lines = text.split("\n")
    delimiter = stem
    while delimiter in lines:
        delimiter += "_"
    if "\0" in text:
        raise Unrepresentable("holds a NUL character, which no shell can carry", text)
    body = text if text.endswith("\n") else text + "\n"
    return f"'{delimiter}'\n{body}{delimiter}"


class _Dumper(yaml.SafeDumper):
    """Block style; text is plain only when no YAML reader can take it for anything else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        # Lists are indented below their key, as yamllint and most people have them.
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if _PLAIN_YAML.fullmatch(text) and text.lower() not in _YAML_WORDS:
        style = None
    else:
        style = "|" if _fits_block(text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _fits_block(text: str) -> bool:
    """Tell whether a literal block holds ``text`` unchanged: printable lines, the first not indented."""
    lines = text.split("\n")
    return len(lines) > 1 and lines[0][:1] not in ("", " ") and all(_block_line(line) for line in lines)


def _block_line(line: str) -> bool:
    # Spelt out, because str.isprintable() differs between Python versions.
    return (
        not line.endswith(" ") and re.fullmatch(r"[\x20-\x7e\xa1-\u2027\u202a-\ud7ff\uff00-\uffee]*", line) is not None
    )


_Dumper.add_representer(str, _represent_text)


def to_yaml(value: Any) -> str:
    """Serialize plain values as a YAML document: same bytes on every machine and Python version."""
    return yaml.dump(
        value, Dumper=_Dumper, allow_unicode=True, sort_keys=False, default_flow_style=False, width=2**31, indent=2
    )


def to_yaml_inline(value: Any) -> str:
    """Serialize a value for the place after ``key:``: JSON, which is YAML too."""
    return to_json(value, indent=None)


def to_json(value: Any, indent: int | None = 2) -> str:
    """Serialize plain values as JSON in ASCII, so that no reader's encoding matters."""
    return json.dumps(value, indent=indent, ensure_ascii=True, allow_nan=False)


def deepspeed_env(name: str, value: str) -> str:
    """Return one line of ``.deepspeed_env``.

    DeepSpeed 0.19 splits at the first ``=``, strips, and puts the value between double quotes into the shell line of
    every node (deepspeed/launcher/multinode_runner.py), so whatever is alive in double quotes is refused.
    """
    found = _DEEPSPEED_ENV_UNSAFE.search(value)
    if found:
        raise Unrepresentable(f"holds {found[0]!r}, which .deepspeed_env cannot carry", value)
    if value != value.strip():
        raise Unrepresentable("begins or ends with white space, which DeepSpeed removes", value)
    return f"{name}={value}\n"


def hostfile_line(host: str, slots: int) -> str:
    """Return one line of a DeepSpeed hostfile (``^(\\S+)\\s+slots=(\\d+)``)."""
    if not re.fullmatch(r"[^\s#][^\s]*", host) or slots < 1:
        raise Unrepresentable(f"{host!r} with {slots} slots is not a hostfile's line", host)
    return f"{host} slots={slots}\n"
