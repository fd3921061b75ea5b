"""A run's place in its rows: none skipped or repeated when the global batch changes, and its end."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from qwen_job.errors import JobError
from qwen_job.run.config import parse_config
from qwen_job.train.course import Course, steps_for
from qwen_job.train.identity import Identity, read_identity, resume_course
from qwen_job.train.settings_diff import is_complete, settings_text
from tests.train import tiny


def walk(place: tuple[int, int], rows: int, width: int) -> tuple[int, int]:
    """Return the place after one more step, the slow way."""
    epoch, row = place
    return (epoch, row + width) if row + width < rows else (epoch + 1, 0)


@pytest.mark.parametrize("seed", range(40))
def test_places_and_ends_are_those_of_counting_step_by_step(seed: int) -> None:
    draw = random.Random(seed)
    rows, course, place, step = draw.randint(1, 30), Course(), (0, 0), 0
    for _ in range(4):
        width = draw.randint(1, 12)
        for epochs in (1, 2.3, 5, 0.5):
            end, (epoch, part) = step, divmod(math.ceil(epochs * steps_for(rows, width)), steps_for(rows, width))
            goal, there = (epoch, part * width), place
            while there < goal:
                there, end = walk(there, rows, width), end + 1
            assert course.end(epochs, rows, width) == (end if place <= goal else step - 1)
        for _ in range(draw.randint(0, 20)):
            place, step = walk(place, rows, width), step + 1
            assert course.at(step, rows, width) == (step, *place)
        course = course.at(step, rows, width)


@pytest.mark.train
@pytest.mark.parametrize(("before", "after"), [((2, 1), (2, 3)), ((1, 4), (3, 1)), ((3, 2), (1, 1))])
def test_every_row_is_dealt_once_an_epoch_also_when_ranks_come_and_go(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    pytest.importorskip("torch")
    from qwen_job.train.batches import EMPTY, StepSampler

    def step_rows(shape: tuple[int, int], course: Course, step: int) -> list[int]:
        micro, ranks = shape
        place, dealt = course.at(step, 23, micro * ranks), []
        for rank in range(ranks):
            sampler = StepSampler(23, micro, 1, rank, ranks, 7)
            sampler.begin_at(course.epoch, course.row)
            sampler.set_epoch(place.epoch)
            skipped = step - course.step if place.epoch == course.epoch else place.row // (micro * ranks)
            assert len(list(sampler)) == len(sampler)
            dealt += list(sampler)[skipped]
        return [row for row in dealt if row != EMPTY]

    course, seen = Course(), []
    for step in range(3):
        seen += step_rows(before, course, step)
    course = course.at(3, 23, before[0] * before[1])
    for step in range(3, course.end(2, 23, after[0] * after[1])):
        seen += step_rows(after, course, step)
    assert sorted(seen) == sorted([*range(23), *range(23)])
    assert sorted(seen[:23]) == list(range(23))


BEGUN = Identity("rows", "weights", 100, 4, Course())


@pytest.mark.parametrize(
    ("now", "word", "expected"),
    [
        (BEGUN, "auto", Course()),
        (BEGUN._replace(width=8), "auto", Course(30, 1, 20)),
        (BEGUN._replace(data="others", rows=50), "changed", Course(30, 1, 0)),
        (BEGUN._replace(model="others"), "changed", Course()),
        (BEGUN._replace(data="others"), "auto", "data.train: "),
        (BEGUN._replace(data="others"), "extend", "data.train: "),
        (BEGUN._replace(model="others"), "auto", "model.name: "),
    ],
)
def test_what_belongs_to_a_run_is_held_against_it(now: Identity, word: str, expected: Course | str) -> None:
    if isinstance(expected, str):
        with pytest.raises(JobError, match=f"^{expected}.*another output.*resume: changed"):
            resume_course(30, BEGUN, now, word, Path("/runs/x"))
        return
    course, notes = resume_course(30, BEGUN, now, word, Path("/runs/x"))
    assert course == expected and len(notes) == (0 if now == BEGUN else 1)


def test_an_identity_comes_back_and_an_earlier_checkpoint_has_none(tmp_path: Path) -> None:
    assert read_identity(tmp_path) is None
    (tmp_path / "identity.json").write_text(BEGUN._replace(course=Course(3, 1, 2)).text())
    assert read_identity(tmp_path) == BEGUN._replace(course=Course(3, 1, 2))
    (tmp_path / "identity.json").write_text(BEGUN._replace(longest=4).text())
    assert read_identity(tmp_path) == BEGUN._replace(longest=4)
    earlier = {name: value for name, value in json.loads(BEGUN.text()).items() if name != "longest"}
    (tmp_path / "identity.json").write_text(json.dumps(earlier))
    assert read_identity(tmp_path) == BEGUN
    course, notes = resume_course(30, None, BEGUN, "auto", tmp_path)
    assert course == Course() and "earlier version" in notes[0]


def test_a_complete_run_answers_to_changed_settings(tmp_path: Path) -> None:
    def asked(**changes: object) -> bool:
        return is_complete(parse_config(tiny.settings(tmp_path, **changes)[0], "train.yaml"))

    assert not asked()
    before = json.loads(settings_text(parse_config(tiny.settings(tmp_path)[0], "train.yaml")))
    (tmp_path / "done.json").write_text(json.dumps({"step": 12, "settings": before}))
    assert asked() and asked(resume="extend") and asked(training__save_steps=9)
    assert not asked(training__num_train_epochs=9.0, resume="extend")
    for field, value in (("num_train_epochs", 9.0), ("max_steps", 99), ("learning_rate", 1e-9)):
        with pytest.raises(JobError, match=rf"training\.{field} .*train\.resume: extend"):
            asked(**{f"training__{field}": value})
    (tmp_path / "done.json").write_text('{"step": 12}')  # of an earlier version
    assert asked(training__max_steps=99)
