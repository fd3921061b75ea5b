"""Readers of rendered text, written from the formats' own documentation."""

from __future__ import annotations

import re
import shlex


def sbatch_lines(script: str) -> list[str]:
    """Return the options of a script's #SBATCH lines as Slurm's own reader splits them (src/sbatch/opt.c).

    Words are divided by white space; ``#`` begins a comment; single and double quotes group; ``\\`` takes the next
    character as it is; the first line that is neither empty nor a comment ends the options.
    """
    words: list[str] = []
    for line in script.encode().split(b"\n")[1:]:
        if line.startswith(b"#SBATCH"):
            words += _words(line[len(b"#SBATCH") :])
        elif line.strip() and not line.startswith(b"#"):
            break
    return words


def _words(line: bytes) -> list[str]:
    words: list[str] = []
    word = bytearray()
    quote, started, index = b"", False, 0
    while index < len(line):
        character = line[index : index + 1]
        index += 1
        if character == b"\\" and quote != b"'":
            word += line[index : index + 1]
            index, started = index + 1, True
        elif quote:
            if character == quote:
                quote = b""
            else:
                word += character
        elif character in (b"'", b'"'):
            quote, started = character, True
        elif character == b"#":
            break
        elif character in (b" ", b"\t", b"\r", b"\v", b"\f"):
            if started:
                words.append(word.decode())
            word, started = bytearray(), False
        else:
            word += character
            started = True
    assert not quote, "an unclosed quote"
    return [*words, word.decode()] if started else words


def srun_words(script: str) -> list[str]:
    """Return the words of the srun line."""
    found = re.search(r"^ *srun (.*?) \\\n", script, re.MULTILINE | re.DOTALL)
    assert found
    return shlex.split(found[1])
