"""Target helm: values that the chart takes."""

from __future__ import annotations

import pytest
import yaml

from qwen_job.errors import JobError
from qwen_job.job import load_job
from qwen_job.plan import make_plan
from qwen_job.render import render
from qwen_job.resources import resource

JOB = resource("configs", "jobs", "qwen-7b-chat-a100-2x8.yaml")


def test_values_name_the_command_that_installs_them() -> None:
    bundle = render(make_plan(load_job([JOB])), "helm")
    assert "helm install qwen-7b-chat charts/qwen-job -f values.yaml" in bundle.text
    assert yaml.safe_load(bundle.text)["cluster"] == {"nodes": 2, "gpus_per_node": 8}


def test_what_helm_would_lose_is_refused_by_field() -> None:
    with pytest.raises(JobError, match=r"env\.X: contains a control character that Helm cannot represent"):
        render(make_plan(load_job([JOB], sets=['env.X="a\\x7fb"'])), "helm")
