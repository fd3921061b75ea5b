"""The Bundle: file name -> text, for one target."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Bundle:
    """What one render gives. ``main`` is the file that goes to stdout; names in ``executable`` get mode 755.

    ``notes`` are words for stderr: what the user should know about this render. ``then`` names the files that are
    submitted after the main one, each with the dependency on it that holds it back (afterok, aftercorr, afterany).
    ``fields`` tells of each option of Slurm's in the main file which field of job.yaml it comes from.
    """

    target: str
    files: dict[str, str]
    main: str
    executable: frozenset[str] = frozenset()
    notes: tuple[str, ...] = field(default=())
    then: tuple[tuple[str, str], ...] = ()
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The text that goes to stdout."""
        return self.files[self.main]
