"""The grid of a sweep: its runs, their folders, and what is refused before anything is rendered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_job.errors import JobError
from qwen_job.job.sweep import folder_name
from tests.jobs import load, plan, problems

GRID = "sweep: {train.learning_rate: [1e-5, 2e-5], train.num_train_epochs: [1, 2]}\n"


def folders(folder: Path, text: str, *sets: str) -> list[str]:
    return [point.folder for point in load(folder, text, *sets).points]


def test_every_combination_is_a_run_in_a_folder_of_its_own(tmp_path: Path) -> None:
    runs = load(tmp_path, GRID).points
    assert [(p.job.train.learning_rate, p.job.train.num_train_epochs) for p in runs] == [
        (1e-5, 1), (1e-5, 2), (2e-5, 1), (2e-5, 2),
    ]  # fmt: skip
    assert runs[2].job.output == "/runs/tiny/learning_rate=2e-05-num_train_epochs=1"
    assert [p.job.name for p in runs] == ["tiny-0", "tiny-1", "tiny-2", "tiny-3"]
    assert {p.job.data.cache_dir for p in runs} == {"/runs/tiny/prepared"}
    assert {p.job.model.cache_dir for p in runs} == {"/runs/.qwen-job-cache"}


def test_a_grid_that_grows_keeps_the_folders_it_had(tmp_path: Path) -> None:
    more = GRID.replace("2e-5]", "5e-6, 2e-5]")
    assert set(folders(tmp_path, GRID)) < set(folders(tmp_path, more))


@pytest.mark.parametrize(
    "text",
    ["sweep: {train.seed: [1, 2]}", "sweep: {train: {seed: [1, 2]}}", "sweep: {'train[seed]': [1, 2]}"],
)
def test_a_field_may_be_written_in_any_way(tmp_path: Path, text: str) -> None:
    assert [point.job.train.seed for point in load(tmp_path, text).points] == [1, 2]


def test_set_sweeps_too(tmp_path: Path) -> None:
    assert folders(tmp_path, "", "sweep.train.seed=[1,2]") == ["seed=1", "seed=2"]


def test_paths_and_short_forms_are_read_as_anywhere_else(tmp_path: Path) -> None:
    for name in ("a.json", "b.json", "c.json"):
        (tmp_path / name).touch()
    runs = load(tmp_path, "sweep: {data: [a.json, [b.json, c.json]], env.X: [1.10]}").points
    assert runs[0].job.data.train[0].path == f"{tmp_path}/a.json"
    assert [file.path for file in runs[1].job.data.train] == [f"{tmp_path}/b.json", f"{tmp_path}/c.json"]
    assert runs[0].job.env == {"X": "1.10"}


def test_a_value_that_no_folder_can_show_is_told_apart_by_a_digest() -> None:
    names = [folder_name({"data": path}) for path in ("/a/x.json", "/b/x.json", "/a/x y.json")]
    assert len(set(names)) == 3 and all(name.startswith("data=x") for name in names)
    assert len(folder_name({"a": "x" * 500})) <= 120
    assert folder_name({"a": 1e-05, "b": True, "c": None}) == "a=1e-05-b=true-c=null"


@given(st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.none() | st.lists(st.text()), min_size=1))
def test_a_folder_s_name_is_safe_whatever_is_swept(values: dict[str, object]) -> None:
    name = folder_name(values)
    assert re.fullmatch(r"[A-Za-z0-9._=+-]{1,120}", name) and name not in (".", "..") and "=" in name


def test_fields_with_the_same_last_part_keep_more_of_their_names(tmp_path: Path) -> None:
    text = "sweep: {slurm.sbatch.nice: [1, 2], slurm.srun.nice: [3]}"
    assert folders(tmp_path, text)[0] == "sbatch.nice=1-srun.nice=3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sweep: {train.seed: [1, x]}", "sweep.train.seed[1]: expected a whole number, not 'x'"),
        ("sweep: {train.sed: [1, 2]}", "sweep.train.sed: unknown field"),
        ("sweep: {trian: {seed: [1]}}", "sweep.trian.seed: unknown field"),
        ("sweep: {train.seed: 3}", "sweep.train.seed: expected a list of values"),
        ("sweep: {train.seed: []}", "sweep.train.seed: expected a list of values"),
        ("sweep: {train.seed: [1, 1]}", "sweep.train.seed: contains a value twice"),
        ("sweep: {output: [a]}", "sweep.output: cannot be swept: every run gets its own folder"),
        ("sweep: {sweep.x: [1]}", "sweep.sweep.x: cannot be swept"),
        ("sweep: {train.seed: [1], train: {seed: [2]}}", "sweep.train.seed: is swept twice"),
        (f"sweep: {{train.seed: {list(range(1001))}}}", "sweep: makes 1001 runs; at most 1000"),
        ("sweep: {cluster.nodes: [1, 0]}", "sweep.cluster.nodes[1]: 0 is too small: write 1 or more"),
        ("sweep: {cluster.gpu: [A100-80G, A101]}", "sweep.cluster.gpu[1]: "),
        ("sweep: {train.global_batch_size: [32, 3]}", "sweep.train.global_batch_size[1]: "),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_by_its_place_in_the_sweep(tmp_path: Path, text: str, message: str) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1 and message in found[0] and "job.yaml:" in found[0]


def test_all_bad_values_are_reported_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, "sweep: {train.seed: [a, 1], train.learning_rate: [1e-5, -1]}")
    assert {text.split(": ")[1] for text in found} == {"sweep.train.learning_rate[1]", "sweep.train.seed[0]"}


def test_a_value_that_contradicts_the_rest_is_named(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "train: {bf16: true}\nsweep: {train.fp16: [false, true]}")
    assert "sweep.train.fp16[1]: bf16 and fp16 are both true" in found


def test_every_run_is_planned(tmp_path: Path) -> None:
    made = plan(tmp_path, "train: {global_batch_size: 32}\nsweep: {train.global_batch_size: [64, 128]}")
    assert [run.plan.batch.global_batch_size for run in made.sweep] == [64, 128]
    assert made.batch.global_batch_size == 32


def test_a_list_that_is_not_there_cannot_be_swept(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"data\.train"):
        load(tmp_path, "sweep: {data.train.7.weight: [1, 2]}")
