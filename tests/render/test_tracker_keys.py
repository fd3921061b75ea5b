"""A tracker without its key: a note where no pod would have it, a warning where this shell does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_job.launch.given import missing_variables
from qwen_job.render import render
from tests.jobs import load, plan

IMAGE = "image: registry/qwen-job:ampere\n"


def notes(folder: Path, text: str) -> list[str]:
    found = render(plan(folder, IMAGE + text, "data=/runs/chats.json"), "kubernetes").notes
    return [note for note in found if note.startswith("train.report_to") and "make image" not in note]


@pytest.mark.parametrize(
    ("tracker", "form"),
    [("wandb", "{WANDB_API_KEY: SECRET/KEY}"), ("swanlab", "{SWANLAB_API_KEY: SECRET/KEY}")],
)
def test_pods_without_the_key_of_a_tracker_are_noted_with_the_form(tmp_path: Path, tracker: str, form: str) -> None:
    (note,) = notes(tmp_path, f"train: {{report_to: {tracker}}}\n")
    assert form in note


@pytest.mark.parametrize(
    "text",
    [
        "train: {report_to: tensorboard}",
        "train: {report_to: wandb}\nkubernetes: {secret_env: {WANDB_API_KEY: wandb/api-key}}",
        "train: {report_to: wandb}\nenv: {WANDB_MODE: offline}",
    ],
)
def test_pods_with_the_key_or_without_need_of_one_are_not_noted(tmp_path: Path, text: str) -> None:
    assert notes(tmp_path, text + "\n") == []


@pytest.mark.parametrize(
    ("target", "text", "packages"),
    [
        ("kubernetes", "train: {report_to: wandb}", "wandb"),
        ("slurm", "train: {report_to: [mlflow, tensorboard, swanlab]}\ncontainer: {runtime: pyxis}", "swanlab mlflow"),
        ("slurm", "train: {report_to: wandb}\nslurm: {python: /venv/bin/python}", None),
        ("local", "train: {report_to: wandb}", None),
        ("kubernetes", "train: {report_to: tensorboard}", None),
    ],
)
def test_an_image_without_the_package_of_a_tracker_is_noted(
    tmp_path: Path, target: str, text: str, packages: str | None
) -> None:
    made = render(plan(tmp_path, f"{IMAGE}{text}\n", "data=/runs/chats.json"), target)
    found = [note for note in made.notes if "make image PACKAGES=" in note]
    assert [f'PACKAGES="{packages}"' in note for note in found] == ([True] if packages else [])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WANDB_API_KEY", "SWANLAB_API_KEY", "WANDB_MODE", "SWANLAB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("target", ["slurm", "local"])
def test_a_shell_without_the_key_is_warned_of(home: Path, target: str) -> None:
    (warning,) = missing_variables(load(home, "train: {report_to: wandb}"), target)
    assert "WANDB_API_KEY, which is not set: export it" in warning and "'wandb login'" in warning


def test_a_key_in_the_shell_or_from_a_login_needs_no_warning(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = load(home, "train: {report_to: [wandb, swanlab]}")
    assert len(missing_variables(job, "slurm")) == 2
    monkeypatch.setenv("SWANLAB_API_KEY", "k")
    (home / ".netrc").write_text("machine api.wandb.ai login user password k\n")
    assert missing_variables(job, "slurm") == []


def test_a_job_that_sets_its_shell_up_itself_needs_no_warning(home: Path) -> None:
    job = load(home, "train: {report_to: wandb}\nslurm: {setup: [. ~/keys.sh]}")
    assert missing_variables(job, "slurm") == []
