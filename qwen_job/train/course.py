"""Where a run stands in its data, counted in rows, whatever the global batch. Nothing here imports torch.

Between two changes of the global batch steps are equally wide, so that a place and the number of steps since give every
later place: no row is skipped or repeated when a run resumes with another global batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Course(NamedTuple):
    """After ``step`` optimizer steps the run stood before ``row`` of ``epoch``; steps of one width follow."""

    step: int = 0
    epoch: int = 0
    row: int = 0

    def at(self, step: int, rows: int, width: int) -> Course:
        """Return the place after ``step`` steps of ``width`` rows each; epochs have ``rows`` rows."""
        left = steps_for(rows - self.row, width)
        since = step - self.step
        if since < left:
            return Course(step, self.epoch, self.row + since * width)
        later, within = divmod(since - left, steps_for(rows, width))
        return Course(step, self.epoch + 1 + later, within * width)

    def end(self, epochs: float, rows: int, width: int) -> int:
        """Return the step that ends ``epochs`` epochs; ``self.step - 1`` where the run is past it already."""
        whole = steps_for(rows, width)
        steps = math.ceil(epochs * whole)
        if self == Course():
            return steps
        epoch, part = divmod(steps, whole)
        row = part * width
        if (epoch, row) <= (self.epoch, self.row):
            return self.step - ((epoch, row) < (self.epoch, self.row))
        if epoch == self.epoch:
            return self.step + steps_for(row - self.row, width)
        return self.step + steps_for(rows - self.row, width) + (epoch - self.epoch - 1) * whole + part


def steps_for(rows: int, width: int) -> int:
    """Return how many steps of ``width`` rows hold ``rows``; the last one may be shorter."""
    return -(-rows // width)
