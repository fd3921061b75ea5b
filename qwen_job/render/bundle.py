"""The Bundle: file name -> text, for one target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """What a script asks of sbatch: option -> value (empty for a flag), and option -> the field it comes from."""

    values: Mapping[str, str]
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Bundle:
    """One rendered job, with what the launcher needs to know about it, so that nobody has to parse the files.

    ``main`` is the file that goes to stdout; names in ``executable`` get mode 755. ``notes`` are messages for stderr:
    what the user should know about this render. ``then`` names the files that are submitted after the main one, each
    with its dependency on it (afterok, aftercorr, afterany). ``run`` is the run folder. ``requests`` holds the options
    of each Slurm script, ``objects`` the Kubernetes objects of the main file.
    """

    target: str
    files: dict[str, str]
    main: str
    executable: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    then: tuple[tuple[str, str], ...] = ()
    run: str = ""
    requests: Mapping[str, Request] = field(default_factory=dict)
    objects: tuple[Mapping[str, Any], ...] = ()

    @property
    def text(self) -> str:
        """The text that goes to stdout."""
        return self.files[self.main]
