"""The training processes of a run, found as ps shows them: a rank is named qwen-rank-N."""

from __future__ import annotations

from collections.abc import Iterable

import psutil

_NAME = "qwen-rank-"


def ranks(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Return the ranks among ``processes``, lowest first; what a rank has started has its name, but not its parent."""
    found = {}
    for process in processes:
        try:
            name, parent = process.name(), process.parent()
            if name.startswith(_NAME) and parent and not parent.name().startswith(_NAME):
                found[int(name.removeprefix(_NAME))] = process
        except psutil.NoSuchProcess:
            continue
    return [found[number] for number in sorted(found)]
