"""The position of a run in its data, counted in rows. Nothing here imports torch.

Between two changes of the global batch all steps are equally wide, so one position and the number of steps since give
every later one: no row is skipped or repeated when a run resumes with another global batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Course(NamedTuple):
    """After ``step`` optimizer steps ``row`` of ``epoch`` is next; steps of one width follow."""

    step: int = 0
    epoch: int = 0
    row: int = 0

    def at(self, step: int, rows: int, width: int) -> Course:
        """Return the position after ``step`` steps of ``width`` rows each; epochs have ``rows`` rows."""
        left = steps_for(rows - self.row, width)
        since = step - self.step
        if since < left:
            return Course(step, self.epoch, self.row + since * width)
        later, within = divmod(since - left, steps_for(rows, width))
        return Course(step, self.epoch + 1 + later, within * width)

    def end(self, epochs: float, rows: int, width: int) -> int:
        """Return the step that ends ``epochs`` epochs; ``self.step - 1`` if the run is already past it."""
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


class Track(NamedTuple):
    """A run's way through its rows: where each step begins, and how many micro-batches it has.

    ``micro`` is the rows of one micro-batch on all ranks, ``width`` those of a step.
    """

    course: Course
    rows: int
    micro: int
    width: int

    def at(self, step: int) -> Course:
        """Return the position after ``step`` steps."""
        return self.course.at(step, self.rows, self.width)

    def micro_batches(self, place: Course) -> int:
        """Return the number of micro-batches of the step at ``place``; the last step of an epoch may have fewer."""
        return min(self.width // self.micro, steps_for(self.rows - place.row, self.micro))

    def epochs_done(self, step: int) -> float:
        """Return the epochs done after ``step``: in micro-batches, or in rows where the width of a step changed."""
        place = self.at(step)
        if self.course.row:
            return place.epoch + place.row / self.rows
        return place.epoch + place.row // self.micro / steps_for(self.rows, self.micro)


def steps_for(rows: int, width: int) -> int:
    """Return the number of steps of ``width`` rows that hold ``rows``; the last one may be shorter."""
    return -(-rows // width)
