"""How long the watchdog waits for a rank that takes steps: as long as its own steps took, with a wide margin."""

from __future__ import annotations

from collections import deque

# The phases of a step. Everything else (loading, compiling, evaluating, saving) gets the whole of hang_seconds.
STEPPING = frozenset({"fetching", "computing"})
# Ten times the longest of the last 200 waits, and never under two minutes: a file server that fails over takes that.
_FACTOR = 10.0
_LEAST_SECONDS = 120.0
_REMEMBERED = 200
_ENOUGH = 20


class Patience:
    """Seconds without progress after which a rank hangs; ``ceiling``: hang_seconds, in every phase but loading."""

    def __init__(self, ceiling: float) -> None:
        self.ceiling = ceiling
        self._waits: deque[float] = deque(maxlen=_REMEMBERED)
        self._longest = 0.0

    def passed(self, before: str, after: str, seconds: float) -> None:
        """Note that a rank went from one phase to another after ``seconds``."""
        if before in STEPPING and after in STEPPING:
            self._waits.append(seconds)
            self._longest = max(self._waits)

    def seconds(self, phase: str) -> float:
        """Return how long ``phase`` may last."""
        if phase not in STEPPING or len(self._waits) < _ENOUGH:
            return self.ceiling
        return min(self.ceiling, max(_LEAST_SECONDS, _FACTOR * self._longest))

    def why(self, limit: float) -> str:
        """Return what a limit follows from, for the message; empty for hang_seconds itself."""
        return f" (its waits were up to {self._longest:.1f} s)" if limit < self.ceiling else ""
