"""The Bundle: file name -> text, for one target."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Bundle:
    """What one render gives. ``main`` is the file that goes to stdout; names in ``executable`` get mode 755.

    ``notes`` are words for stderr: what the user should know about this render.
    """

    target: str
    files: dict[str, str]
    main: str
    executable: frozenset[str] = frozenset()
    notes: tuple[str, ...] = field(default=())

    @property
    def text(self) -> str:
        """The text that goes to stdout."""
        return self.files[self.main]
