"""A job without an image runs that of its release, by digest; a checkout says what to build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_job import __version__
from qwen_job.errors import JobError
from qwen_job.facts import fact, released
from qwen_job.job import load_job
from qwen_job.plan import make_plan
from qwen_job.render import Bundle, render
from tests.jobs import FIVE_LINES

DIGESTS = {"ampere": f"sha256:{'a' * 64}", "v100": f"sha256:{'b' * 64}", "cpu": f"sha256:{'c' * 64}"}
NAME = "ghcr.io/qwen-job/qwen-job"
GPUS = [("A100-80G", "ampere"), ("H100", "ampere"), ("V100-32G", "v100"), ("CPU", "cpu")]


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes this a release with these values."""

    def fill(**values: Any) -> None:
        known = yaml.safe_load(fact("release.yaml").read_text("utf-8"))
        path = tmp_path / "release.yaml"
        path.write_text(yaml.safe_dump({**known, "version": __version__, "commit": "c0ffee", **values}))
        monkeypatch.setattr(released, "fact", lambda *_: path)

    return fill


def bundle(target: str, gpu: str = "A100-80G", **sections: Any) -> Bundle:
    paths = {"data": "/shared/chats.json", "output": "/shared/run"}
    base = {**yaml.safe_load(FIVE_LINES), **paths, "cluster": {"gpu": gpu, "gpus_per_node": 2}, **sections}
    return render(make_plan(load_job([], under=base)), target)


def test_a_checkout_has_no_release() -> None:
    assert released.release() is None and released.released_image("ampere") is None


@pytest.mark.parametrize(("gpu", "name"), GPUS)
def test_a_release_names_the_image_of_the_gpu_by_digest(release: Any, gpu: str, name: str) -> None:
    release(digests=DIGESTS)
    made = bundle("kubernetes", gpu)
    assert f"image: {NAME}@{DIGESTS[name]}" in made.text.replace('"', "")
    assert any(note.startswith("image: not set") and DIGESTS[name] in note for note in made.notes)


@pytest.mark.parametrize(
    ("runtime", "form"),
    [
        ("pyxis", f"ghcr.io#qwen-job/qwen-job:{DIGESTS['ampere']}"),
        ("apptainer", f"docker://{NAME}@{DIGESTS['ampere']}"),
        ("podman", f"{NAME}@{DIGESTS['ampere']}"),
    ],
)
def test_a_container_runtime_of_slurm_gets_it_too(release: Any, runtime: str, form: str) -> None:
    release(digests=DIGESTS)
    made = bundle("slurm", container={"runtime": runtime})
    assert form in made.text
    assert any(note.startswith("image: not set") for note in made.notes)


def test_slurm_without_containers_needs_no_image(release: Any) -> None:
    release(digests=dict.fromkeys(DIGESTS))
    assert not any("image" in note for note in bundle("slurm").notes)


def test_an_image_in_the_job_is_the_one(release: Any) -> None:
    release(digests=dict.fromkeys(DIGESTS))
    made = bundle("kubernetes", image="registry/mine:1")
    assert "registry/mine:1" in made.text and not any(note.startswith("image:") for note in made.notes)


@pytest.mark.parametrize("target", ["kubernetes", "helm", "slurm"])
@pytest.mark.parametrize("digest", [None, "", "sha256:abc", "latest", 7])
def test_a_digest_that_the_release_did_not_fill_is_refused(release: Any, target: str, digest: Any) -> None:
    release(digests={**DIGESTS, "ampere": digest})
    with pytest.raises(JobError, match=r"image: write one: .*digests\.ampere: .* is no digest.*again"):
        bundle(target, container={"runtime": "docker"})
    assert bundle("kubernetes", "V100-32G").text


def test_the_digests_of_another_version_are_refused(release: Any) -> None:
    release(version="9.9.9", digests=DIGESTS)
    with pytest.raises(JobError, match=r"image: write one: .*is of version 9\.9\.9"):
        bundle("helm")


@pytest.mark.parametrize(("gpu", "name"), GPUS)
def test_a_checkout_says_what_to_build(gpu: str, name: str) -> None:
    made = bundle("kubernetes", gpu)
    assert f"localhost/qwen-job:{name}" in made.text
    (note,) = [note for note in made.notes if note.startswith("image:")]
    assert f"'make image SET={name} IMAGE=REGISTRY/qwen-job:{name}'" in note


def test_a_checkout_refuses_a_container_without_an_image() -> None:
    with pytest.raises(JobError, match=r"container\.runtime: .*needs an image.*make image SET=v100"):
        bundle("slurm", "V100-32G", container={"runtime": "docker"})


@pytest.mark.parametrize(("target", "container"), [("kubernetes", {}), ("helm", {}), ("slurm", {"runtime": "pyxis"})])
def test_a_suite_that_the_released_image_cannot_run_is_refused(
    release: Any, target: str, container: dict[str, str]
) -> None:
    release(digests=DIGESTS)
    suite = {"evaluate": {"suite": "gsm8k"}, "container": container}
    with pytest.raises(
        JobError, match=r"evaluate\.suite: the released image.*'make image SET=ampere PACKAGES=lm-eval'"
    ):
        bundle(target, **suite)
    assert bundle(target, image="registry/mine:1", **suite)
    assert bundle("slurm", evaluate={"suite": "gsm8k"})
