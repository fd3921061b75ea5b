"""Every example of configs/jobs: planned without a warning, rendered for its target, and valid there."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_job.render import render
from scripts.gallery import CHINESE, Example, examples_page, gallery
from tests.render.test_shellcheck import check
from tests.support.schemas import load, validate

EXAMPLES = gallery()
WANTED = (
    ("Qwen-1_8B-Chat", 1, 1, "V100-32G", "slurm"),
    ("Qwen-1_8B-Chat", 1, 2, "A100-40G", "slurm"),
    ("Qwen-1_8B-Chat", 2, 4, "V100-32G", "slurm"),
    ("Qwen2.5-7B-Instruct", 1, 8, "A100-80G", "slurm"),
    ("Qwen2.5-72B-Instruct", 4, 8, "H100-80G", "slurm"),
    ("Qwen2.5-72B-Instruct", 8, 8, "H100-80G", "slurm"),
    ("Qwen3-8B", 1, 8, "H100-80G", "slurm"),
    ("Qwen2.5-7B-Instruct", 2, 8, "H100-80G", "kubernetes"),
    ("Qwen2.5-7B-Instruct", 4, 8, "A100-80G", "hostfile"),
)


@pytest.fixture(params=EXAMPLES, ids=lambda example: example.name)
def example(request: pytest.FixtureRequest) -> Example:
    found: Example = request.param
    return found


def test_an_example_fits_without_a_warning(example: Example) -> None:
    assert example.plan.run and example.plan.run.speed
    assert example.plan.warnings == ()


def test_an_example_is_valid_for_its_target(example: Example, tmp_path: Path) -> None:
    bundle = render(example.plan, example.target)
    if example.target == "kubernetes":
        assert validate(load(bundle.text)) == []
    else:
        check(tmp_path, dict(bundle.files))


def test_an_example_says_what_it_is_in_both_languages(example: Example) -> None:
    lines = example.path.read_text("utf-8").splitlines()
    assert lines[0] == "# yaml-language-server: $schema=../job.schema.json"
    assert example.summary.endswith(".") and example.summary in examples_page()
    assert CHINESE[example.name] in examples_page(chinese=True)


def test_the_list_has_the_usual_models_gpus_and_targets() -> None:
    shown = {
        (
            one.plan.job.model.name.rpartition("/")[2],
            one.plan.nodes,
            one.plan.gpus_per_node,
            one.plan.gpu.name,
            one.target,
        )
        for one in EXAMPLES
    }
    assert set(WANTED) - shown == set()
    assert any(one.plan.job.sweep for one in EXAMPLES)
    assert any(one.plan.job.train.model_max_length == 32768 for one in EXAMPLES)
    assert any((one.plan.job.kubernetes.queue or "").startswith("kueue:") for one in EXAMPLES)
    assert set(CHINESE) == {one.name for one in EXAMPLES}
