"""The one place that quotes values for a shell, an #SBATCH line, YAML, JSON or a DeepSpeed file.

Each function returns text that the format reads back as exactly the same value, or raises :class:`Unrepresentable`
if the format cannot represent it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

_PLAIN_SBATCH = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
_PLAIN_YAML = re.compile(r"[A-Za-z_/][A-Za-z0-9_./@+-]*")
# Patterns over all of Unicode take milliseconds to compile, and most jobs are ASCII, so compile these at first use.
# Written out, because str.isprintable() differs between Python versions beyond ASCII.
_BLOCK_LINE = r"[\x20-\x7e\xa1-\u2027\u202a-\ud7ff\uff00-\uffee]*"
_NOT_IN_YAML = r"[\x7f-\xa0\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]"
# YAML requires longer keys to be marked with "?" (1.2, section 7.4).
_LONGEST_KEY = 1000
# Words that some YAML 1.1 or 1.2 reader reads as something other than text.
_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}
_DEEPSPEED_ENV_UNSAFE = r'["$`\\\x00-\x1f\x7f\x85\u2028\u2029]'
# Slurm 22.05 rejects a longer comment ("Pathname of a file, directory or other parameter too long").
_MAX_SBATCH_BYTES = 1000


class Unrepresentable(ValueError):
    """The format cannot represent ``value``; the message says why, but not where it is."""

    def __init__(self, message: str, value: Any) -> None:
        super().__init__(message)
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.value)


class Quoted(str):
    """Text that one of these functions returned: the only text that a template may print."""

    __slots__ = ()


def sh(value: Any) -> str:
    """Quote one word for a POSIX shell. Newlines are kept; NUL is rejected."""
    text = str(value)
    if "\0" in text:
        raise Unrepresentable("contains a NUL character, which no shell can represent", value)
    return shlex.quote(text)


def sh_words(values: list[Any]) -> str:
    """Quote several words and join them with spaces."""
    return " ".join(sh(value) for value in values)


def sbatch(value: Any) -> str:
    r"""Quote a value for an ``#SBATCH --option=value`` line.

    Slurm reads such a line itself: it splits at white space, takes ``#`` for a comment, and inside double quotes knows
    ``\\`` as the escape of itself and of the quote. (An escaped space outside of quotes still splits on 22.05.)
    """
    text = str(value)
    if re.search(r"[\x00-\x1f\x7f\x85\u2028\u2029]", text):
        raise Unrepresentable("contains a control character, which an #SBATCH line cannot represent", text)
    if len(text.encode()) > _MAX_SBATCH_BYTES:
        raise Unrepresentable(f"is over {_MAX_SBATCH_BYTES} bytes, more than Slurm accepts", text)
    if _PLAIN_SBATCH.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def shell_comment(value: Any) -> str:
    """Return text for the inside of a ``#`` comment: control characters become spaces."""
    text = str(value)
    return (text if text.isprintable() else re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", " ", text)).strip()


def heredoc(text: str, stem: str = "END") -> str:
    """Return ``text`` as the quoted here-document that follows ``<<``; nothing in it is expanded."""
    lines = text.split("\n")
    delimiter = stem
    while delimiter in lines:
        delimiter += "_"
    if "\0" in text:
        raise Unrepresentable("contains a NUL character, which no shell can represent", text)
    body = text if text.endswith("\n") else text + "\n"
    return f"'{delimiter}'\n{body}{delimiter}"


def to_yaml(value: Any) -> str:
    """Serialize plain values as a YAML document in block style: same bytes on every machine and Python version.

    Our own, because PyYAML's dumper leaves text unquoted that other readers read as a number (1e5) or a boolean (on),
    and takes most of a render's time. Text that is not clearly a word becomes a JSON string or a literal block.
    """
    if isinstance(value, (dict, list)) and value:
        return "\n".join(_yaml_lines(value)) + "\n"
    return _yaml_scalar(value) + "\n"


def _yaml_lines(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            head = _yaml_scalar(str(key))
            if len(head) > _LONGEST_KEY:
                yield f"? {head}"
                head = ""
            yield from _yaml_entry(f"{head}:", item)
    else:
        for item in value:
            yield from _yaml_item(item)


def _yaml_entry(head: str, item: Any) -> Iterator[str]:
    if isinstance(item, (dict, list)) and item:
        yield head
        yield from (f"  {line}" if line else line for line in _yaml_lines(item))
    elif isinstance(item, str) and _fits_block(item):
        yield f"{head} {'|' if item.endswith(chr(10)) else '|-'}"
        yield from (f"  {line}" if line else line for line in item.rstrip("\n").split("\n"))
    else:
        yield f"{head} {_yaml_scalar(item)}"


def _yaml_item(item: Any) -> Iterator[str]:
    if isinstance(item, (dict, list)) and item:
        mark = "- "
        for line in _yaml_lines(item):
            yield f"{mark}{line}" if line else line
            mark = "  "
    else:
        yield from _yaml_entry("-", item)


def _yaml_scalar(value: Any) -> str:
    if isinstance(value, str):
        if _PLAIN_YAML.fullmatch(value) and value.lower() not in _YAML_WORDS:
            return value
        text = json.dumps(value, ensure_ascii=False)
        if text.isascii() and "\x7f" not in text:
            return text
        return re.sub(_NOT_IN_YAML, lambda found: f"\\u{ord(found[0]):04x}", text)
    if isinstance(value, float):
        # YAML 1.1 reads 1e-05 as text, because it requires a point.
        text = json.dumps(value, allow_nan=False)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    return json.dumps(value)


def _fits_block(text: str) -> bool:
    """Tell whether a literal block represents ``text`` exactly: printable lines, the first not indented, one end."""
    lines = text.split("\n")
    if len(lines) < 2 or lines[0][:1] in ("", " ") or text.endswith("\n\n"):
        return False
    return all(_is_block_line(line) and not line.endswith(" ") for line in lines)


def _is_block_line(line: str) -> bool:
    return line.isprintable() if line.isascii() else re.fullmatch(_BLOCK_LINE, line) is not None


def to_yaml_inline(value: Any, indent: int | None = None) -> str:
    """Serialize a value as JSON that every YAML reader accepts too, to follow ``key:``.

    Beyond U+FFFF JSON would write surrogate pairs (``\\ud83d\\ude00``), which no YAML reader joins.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return re.sub(r"[\x7f-\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def to_json(value: Any, indent: int | None = 2) -> str:
    """Serialize plain values as ASCII JSON, which is independent of encodings."""
    return json.dumps(value, indent=indent, ensure_ascii=True, allow_nan=False)


def deepspeed_env(name: str, value: str) -> str:
    """Return one line of ``.deepspeed_env``.

    DeepSpeed 0.19 splits at the first ``=``, strips, and puts the value between double quotes into the shell line of
    every node (deepspeed/launcher/multinode_runner.py), so characters that are special in double quotes are rejected.
    """
    found = re.search(_DEEPSPEED_ENV_UNSAFE, value)
    if found:
        raise Unrepresentable(f"contains {found[0]!r}, which .deepspeed_env cannot represent", value)
    if value != value.strip():
        raise Unrepresentable("begins or ends with white space, which DeepSpeed removes", value)
    return f"{name}={value}\n"


def hostfile_line(host: str, slots: int) -> str:
    """Return one line of a DeepSpeed hostfile (``^(\\S+)\\s+slots=(\\d+)``)."""
    if not re.fullmatch(r"[^\s#][^\s]*", host) or slots < 1:
        raise Unrepresentable(f"{host!r} with {slots} slots is not a valid line of a hostfile", host)
    return f"{host} slots={slots}\n"


def literal(value: str) -> str:
    """Escape ``$(NAME)``, which Kubernetes would expand, and ``$$``, which it would halve."""
    return value.replace("$", "$$") if re.search(r"\$[$(]", value) else value
