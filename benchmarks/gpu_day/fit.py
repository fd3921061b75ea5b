"""The plan's memory constants, fitted to one half of a day's peaks and judged on the other.

Every second row, by name, fits; the rest tells how good the constants are. ``allocated`` fits the activations' factor,
what the device holds besides fits the CUDA context and the fragmentation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_day import peaks
from benchmarks.gpu_day.product import Sizes, plan_for
from benchmarks.gpu_day.tables import gib, table
from qwen_job.plan.estimate.layout import Layout
from qwen_job.plan.estimate.memory import DEFAULT_CONSTANTS, Constants, estimate_memory
from qwen_job.plan.search.choice import layout_of


class Peak(NamedTuple):
    """One measured setting, in bytes."""

    name: str
    layout: Layout
    allocated: int
    device: int

    def errors(self, constants: Constants) -> tuple[float, float]:
        """Return the relative errors of what is planned: of tensors, and of all that the device holds."""
        estimate = estimate_memory(self.layout, constants=constants)
        planned = estimate.moments[estimate.peak]
        return planned / self.allocated - 1, estimate.gpu_bytes / self.device - 1


def measured(rows: dict[str, Any], sizes: Sizes, home: Path) -> list[Peak]:
    """Return the settings of the ``peaks`` task that were measured, by name."""
    found = []
    for name, changes in sorted(peaks.settings(sizes).items()):
        row = rows.get(name, {})
        if not row.get("allocated"):
            continue
        plan = plan_for(sizes, home, "fit", **changes)
        assert plan.question is not None
        layout = layout_of(plan.question, plan.choice)._replace(compiled=row["graphs"] > 0)
        found.append(Peak(name, layout, row["allocated"], row["device"]))
    return found


def fitted(rows: Sequence[Peak]) -> Constants:
    """Return the constants with the least squared errors on ``rows``: factors in steps of 1%, 0.5% and 0.1 GB."""
    factors = [replace(DEFAULT_CONSTANTS, activation_factor=step / 100) for step in range(70, 141)]
    best = min(factors, key=lambda constants: _squares(rows, constants, 0))
    whole = [
        replace(best, context_bytes=context * 100_000_000, fragmentation=share / 200)
        for context in range(2, 31)
        for share in range(0, 25)
    ]
    return min(whole, key=lambda constants: _squares(rows, constants, 1))


def _squares(rows: Sequence[Peak], constants: Constants, which: int) -> float:
    return sum(math.log1p(row.errors(constants)[which]) ** 2 for row in rows)


def report(rows: Sequence[Peak]) -> str:
    """Return the fit and its errors as Markdown.

    Raises:
        SystemExit: there are too few rows.
    """
    fit, test = rows[::2], rows[1::2]
    if len(test) < 2:
        raise SystemExit(f"{len(rows)} peaks were measured; a fit needs four")
    constants = fitted(fit)
    lines = [
        f"activation_factor {constants.activation_factor}, context_bytes {constants.context_bytes:,}, "
        f"fragmentation {constants.fragmentation}: fitted to {len(fit)} rows",
        table(
            "setting | use | allocated | error now | fitted | device | error now | fitted",
            [_line(row, "fit" if row in fit else "test", constants) for row in rows],
        ),
    ]
    for name, chosen in (("now", DEFAULT_CONSTANTS), ("fitted", constants)):
        for which, what in enumerate(("allocated", "device")):
            errors = [row.errors(chosen)[which] for row in test]
            middle = statistics.median(map(abs, errors))
            lines.append(
                f"{name}, {what}: median error of {len(test)} test rows {middle:.1%}, lowest {min(errors):+.1%}"
            )
    return "\n\n".join(lines)


def _line(row: Peak, use: str, constants: Constants) -> tuple[object, ...]:
    before, after = row.errors(DEFAULT_CONSTANTS), row.errors(constants)
    allocated = gib(row.allocated), f"{before[0]:+.1%}", f"{after[0]:+.1%}"
    return row.name, use, *allocated, gib(row.device), f"{before[1]:+.1%}", f"{after[1]:+.1%}"
