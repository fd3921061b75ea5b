"""The JSON Schema says what the loader says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from qwen_job.job.document import parse
from qwen_job.job.schema import ADDRESS, catalog_entry, job_schema
from qwen_job.resources import resource
from tests.jobs import FIVE_LINES, problems

VALIDATOR = Draft202012Validator(job_schema())
JOBS = sorted(resource("configs", "jobs").glob("*.yaml"))
SHORT_AND_LONG = """
train: {report_to: none, run_name: first, num_train_epochs: 3, learning_rate: 1, bf16: true}
env: {A: 4, B: true, C: text, D: 1.5}
slurm: {time: 2h, memory: 0, sbatch: {nice: 10, contiguous: true, get-user-env: , plugin: y}, srun: {mpi: none}}
hostfile: {hosts: gpu01}
retry: {grace: 2m}
kubernetes: {active_deadline: 1d, ttl_after_finished: 3600}
"""


def read(text: str) -> Any:
    return parse(text, "job.yaml").value


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(job_schema())


def test_the_committed_schema_is_current() -> None:
    committed = json.loads(resource("configs", "job.schema.json").read_text("utf-8"))
    assert committed == job_schema(), "refresh: qwen-job schema > configs/job.schema.json"


@pytest.mark.parametrize("path", [*JOBS, resource("configs", "job-template.yaml")], ids=lambda path: path.stem)
def test_what_we_ship_is_valid_and_names_the_schema(path: Path) -> None:
    text = path.read_text("utf-8")
    VALIDATOR.validate(read(text))
    assert text.startswith("# yaml-language-server: $schema=")


def test_the_template_s_comments_are_valid_fields() -> None:
    text = resource("configs", "job-template.yaml").read_text("utf-8")
    lines = [line[2:] if line.startswith("# ") else line for line in text.splitlines()[2:]]
    VALIDATOR.validate(read("\n".join(lines)))


@pytest.mark.parametrize(
    "data", ["a.json", ["a.json", {"path": "b", "weight": 2}], {"train": "a.json", "eval": "b.json"}]
)
def test_every_form_of_data_is_valid(data: Any) -> None:
    VALIDATOR.validate({**yaml.safe_load(FIVE_LINES), "data": data})


def test_what_the_loader_takes_the_schema_takes(tmp_path: Path) -> None:
    assert problems(tmp_path, SHORT_AND_LONG) == []
    VALIDATOR.validate(read(FIVE_LINES + SHORT_AND_LONG))


@pytest.mark.parametrize(
    "text",
    [
        "trian: {}", "train: {learning_rat: 1}", "train: {lr: 1}", "train: {learning_rate: x}", "env: {A: [1]}",
        "slurm: {tme: 1}", "cluster: {gpu: A100-80G, nodes: 0}", "name: '-x'", "container: {runtime: dokcer}",
        "data: 5", "deepspeed: {zero_stage: 4}", "hostfile: {hosts: 5}", "slurm: {time: [1]}",
    ],
)  # fmt: skip
def test_what_the_loader_refuses_the_schema_refuses(text: str) -> None:
    assert not VALIDATOR.is_valid({**read(FIVE_LINES), **read(text)})


def undescribed(schema: Any, path: str = "") -> Iterator[str]:
    """Yield the fields of job.yaml without a description; Kubernetes' own objects have theirs in its documentation."""
    for name, field in schema.get("properties", {}).items():
        if "description" not in field:
            yield f"{path}{name}"
    for name, part in schema.get("$defs", {}).items():
        for form in part.get("anyOf", [part]):
            yield from undescribed(form, f"{name}.")


def test_every_field_is_described() -> None:
    assert [*undescribed(job_schema())] == []


@pytest.mark.parametrize("name", ["job", "site"])
def test_a_schema_says_what_it_is_and_where(name: str) -> None:
    text = resource("configs", f"{name}.schema.json").read_text("utf-8")
    head = list(json.loads(text).items())[:4]
    assert [key for key, _ in head] == ["$schema", "$id", "title", "description"]
    assert dict(head)["$id"] == f"{ADDRESS}/{name}.schema.json"


def test_the_catalog_s_entry_is_complete_and_matches_job_files_only() -> None:
    entry = json.loads(resource("configs", "schemastore.json").read_text("utf-8"))
    assert entry == catalog_entry() and entry["url"] == job_schema()["$id"]
    assert set(entry) == {"name", "description", "fileMatch", "url"}
    assert any(fnmatch("big.qwen-job.yaml", pattern) for pattern in entry["fileMatch"])
    # As the catalog's own rules have it: no name that other programs use.
    assert not any(fnmatch(name, pattern) for name in ("job.yaml", "values.yaml") for pattern in entry["fileMatch"])
