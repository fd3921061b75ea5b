"""Data by name in job.yaml: checked by field, written to train.yaml, mounted nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qwen_job.data.sources import local_data
from qwen_job.job.paths import paths_of
from qwen_job.plan.train_config import train_config
from qwen_job.render.configs import config_files
from qwen_job.render.container import mounts
from qwen_job.run.config import parse_config, to_values
from qwen_job.run.sections import DataFile
from qwen_job.train.settings_diff import settings_text
from tests.jobs import bundle, load, pinned_plan, plan, problems


@pytest.mark.parametrize(
    ("value", "field", "message"),
    [
        ("hf:name", "data.train[0].path", "names no data set: write hf:owner/name"),
        ("gs://b/c", "data.train[0].path", "gs:// is not supported; use https://"),
        ("[{path: /a.json, revision: v1}]", "data.train[0]", "revision: only a data set of a hub"),
        ("[{path: 's3://b/a.json', revision: v1}]", "data.train[0]", "revision: only a data set of a hub"),
        ("[/a.json, 'https://h/a?token=c2VjcmV0']", "data.train[1].path", "is signed (token)"),
    ],
)
def test_a_wrong_name_is_refused_by_its_field(tmp_path: Path, value: str, field: str, message: str) -> None:
    (found,) = problems(tmp_path, "", f"data.train={value}")
    assert f"{field}: " in found
    assert message in found
    assert "c2VjcmV0" not in found


def test_evaluate_s_data_may_be_a_name_too(tmp_path: Path) -> None:
    assert "evaluate.data: " in problems(tmp_path, "evaluate: {data: 'hf:name'}\n")[0]
    assert load(tmp_path, "evaluate: {data: 'hf:o/n:test'}\n").evaluate.data == "hf:o/n:test"  # type: ignore[union-attr]


def test_names_are_no_paths_and_paths_stay_relative_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.json").touch()
    job = load(tmp_path, "", "data.train=['hf:o/n', 'own.json']", "data.eval=['https://h/a.jsonl']")
    assert [file.path for file in job.data.train] == ["hf:o/n", str(Path("own.json").absolute())]
    assert {one.path for one in paths_of(job)} == {job.output, str(Path("own.json").absolute())}


def test_train_yaml_holds_the_names_and_is_read_back(tmp_path: Path) -> None:
    made = plan(
        tmp_path, "", "data.train=[{path: 'hf:o/n:test', weight: 2.0, revision: v1}, 's3://b//c.jsonl', /a.json]"
    )
    written = yaml.safe_load(config_files(made)["train.yaml"])["data"]["train"]
    assert written == [
        {"weight": 2.0, "source": "hf:o/n:test", "revision": "v1"},
        {"weight": 1.0, "source": "s3://b//c.jsonl", "revision": None},
        {"path": "/a.json", "weight": 1.0},
    ]
    read = parse_config(yaml.safe_load(config_files(made)["train.yaml"]), "train.yaml")
    assert to_values(read)["data"]["train"] == to_values(train_config(made))["data"]["train"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "data.train[0].path: is missing"),
        ({"source": "hf:x"}, "data.train[0].path: 'hf:x' names no data set"),
        ("gs://b/c", "data.train[0].path: gs:// is not supported"),
        ({"source": 3}, "data.train[0].path: is missing"),
    ],
)
def test_a_wrong_entry_of_train_yaml_is_refused_by_its_field(tmp_path: Path, entry: object, message: str) -> None:
    values = to_values(train_config(plan(tmp_path)))
    values["data"]["train"] = [entry]
    with pytest.raises(Exception, match=r"data\.train") as caught:
        parse_config(values, "train.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer", "docker"])
def test_containers_mount_the_cache_and_no_name(tmp_path: Path, runtime: str) -> None:
    data = {"train": ["hf:o/n", "s3://bucket/c.jsonl"], "eval": ["https://host/d.jsonl"]}
    made = pinned_plan(tmp_path, container={"runtime": runtime, "image": "images/x"}, data=data)
    assert mounts(made) == ["/runs/.qwen-job-cache:/runs/.qwen-job-cache", "/runs/tiny:/runs/tiny"]


def test_pods_need_no_volume_for_a_name(tmp_path: Path) -> None:
    volume = {"name": "runs", "mount_path": "/runs", "pvc": "claim"}
    made = bundle(tmp_path, "kubernetes", data={"train": ["hf:o/n"]}, kubernetes={"volumes": [volume]})
    assert "hf:o/n" in made.text  # in train.yaml, for the pods
    assert "mountPath: hf" not in made.text


def test_the_evaluation_names_the_data(tmp_path: Path) -> None:
    made = bundle(tmp_path, "slurm", data={"train": ["/a.json"], "eval": ["hf:o/n:test"]}, evaluate={})
    assert "evaluate /runs/tiny --data hf:o/n:test" in made.files["tiny-evaluate.sbatch"]


def test_a_checkpoint_s_settings_hold_the_name_and_not_the_cache(tmp_path: Path) -> None:
    plain = settings_text(train_config(plan(tmp_path)))
    assert '"path": "/data/chats.json"' in plain
    assert "revision" not in plain
    named = train_config(plan(tmp_path, "", "data.train=[{path: 'hf:o/n', revision: v1}]"))
    assert '"revision": "v1"' in settings_text(named)
    assert '"path": "hf:o/n"' in settings_text(named)


def test_a_file_is_written_as_before() -> None:
    assert DataFile.model_validate("/a.json") == DataFile(path=Path("/a.json"))
    assert DataFile.model_validate("hf:o/n").source == "hf:o/n"


def test_a_run_on_paths_is_left_as_it_is(tmp_path: Path) -> None:
    config = train_config(plan(tmp_path))
    assert local_data(config, print) is config
