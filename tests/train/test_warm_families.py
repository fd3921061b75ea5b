"""Which code of transformers the process imports from which ranks are forked."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_job.train import template
from qwen_job.train.template import families_of


@pytest.fixture(autouse=True)
def _without_fla(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "find_spec", lambda _name: None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", ("qwen2",)),
        ("Qwen/Qwen3-4B", ("qwen3",)),
        ("Qwen/Qwen3-30B-A3B", ("qwen3_moe",)),
        ("Qwen/Qwen1.5-MoE-A2.7B-Chat", ("qwen2_moe",)),
        ("Qwen/Qwen3.5-2B", ("qwen3_5",)),
        ("Qwen/Qwen3.6-35B-A3B", ("qwen3_5_moe",)),
        ("Qwen/Qwen-1_8B-Chat", ("qwen2", "qwen3")),
        ("acme/unknown", ("qwen2", "qwen3")),
    ],
)
def test_the_code_of_the_models_own_family_is_imported(name: str, expected: tuple[str, ...]) -> None:
    assert families_of({"model": {"name": name}}) == expected


@pytest.mark.parametrize("settings", [{}, {"model": "x"}, {"model": {}}])
def test_settings_that_cannot_be_read_are_left_to_the_ranks(settings: dict[str, Any]) -> None:
    assert families_of(settings) == ("qwen2", "qwen3")


def test_kernels_that_look_for_a_gpu_are_left_to_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "find_spec", lambda name: name)
    assert families_of({"model": {"name": "Qwen/Qwen3.5-2B"}}) == ()
    assert families_of({"model": {"name": "Qwen/Qwen3-30B-A3B"}}) == ("qwen3_moe",)
