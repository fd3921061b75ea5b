"""A user's own fields through the chart: merged to the same objects as by the CLI, and refused at the same fields."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from qwen_job.job import load_job
from qwen_job.plan import make_plan
from qwen_job.render import render
from qwen_job.resources import resource
from tests.chart.test_parity import CHART, by_helm, ordered
from tests.render.kubernetes.overlaid import MERGED, REFUSED, REFUSED_OF_JOBS, named
from tests.support.helm import run_helm
from tests.support.schemas import load

JOB = resource("configs", "jobs", "qwen-7b-chat-a100-2x8.yaml")
KINDS = ["pytorchjob", "trainjob", "jobset"]
# Each once, with the kinds in turn: what is merged is the same pod for all of them.
MERGES = [(KINDS[number % 3], name) for number, name in enumerate(MERGED)]
REFUSALS = [
    *((KINDS[number % 3], field, written) for number, (field, written) in enumerate(REFUSED.items())),
    *((kind, field, written) for kind, fields in REFUSED_OF_JOBS.items() for field, written in fields.items()),
]


@pytest.mark.parametrize(("kind", "name"), MERGES)
def test_the_chart_merges_what_the_cli_merges(kind: str, name: str, tmp_path: Path) -> None:
    sets = [f"kubernetes.{field}={json.dumps(value)}" for field, value in named(kind, MERGED[name]).items()]
    plan = make_plan(load_job([JOB], sets=sets))
    assert ordered(by_helm(plan, tmp_path)) == ordered(load(render(plan, "kubernetes").text))


@pytest.mark.parametrize(("kind", "field", "written"), REFUSALS)
def test_the_chart_refuses_what_the_cli_refuses(kind: str, field: str, written: str, tmp_path: Path) -> None:
    values = {"cluster": {"nodes": 2, "gpus_per_node": 8}, "kubernetes": named(kind, written)}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(AssertionError, match="helm") as refused:
        run_helm("template", "x", CHART, "-f", tmp_path / "values.yaml")
    assert f"kubernetes.{field}:" in str(refused.value)
