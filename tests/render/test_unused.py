"""What a target does not use is named in a note."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.jobs import bundle

IMAGE = "registry.example.com/qwen-job:ampere"
HOSTS: dict[str, Any] = {"hostfile": {"hosts": ["n1"]}}
OTHERS: dict[str, Any] = {
    "slurm": {"partition": "gpu"}, "kubernetes": {"namespace": "a"}, "local": {"python": "python3"}, **HOSTS,
}  # fmt: skip


@pytest.mark.parametrize("target", ["slurm", "hostfile", "local"])
def test_the_sections_of_other_targets_are_named(tmp_path: Path, target: str) -> None:
    notes = bundle(tmp_path, target, **OTHERS).notes
    named = [note for note in notes if note.endswith(f": not used on {target}")]
    assert [set(note.partition(": ")[0].split(", ")) for note in named] == [set(OTHERS) - {target}]


@pytest.mark.parametrize(("target", "runs"), [("hostfile", "hostfile.python"), ("local", "local.python")])
@pytest.mark.parametrize("container", [{"image": IMAGE}, {"container": {"runtime": "docker", "image": IMAGE}}])
def test_an_image_that_no_target_starts_is_named(
    tmp_path: Path, target: str, runs: str, container: dict[str, Any]
) -> None:
    (note,) = [one for one in bundle(tmp_path, target, **HOSTS, **container).notes if "image" in one]
    assert f"not used on {target}" in note and f"starts {runs} without a container" in note


@pytest.mark.parametrize(
    ("sections", "fields"),
    [
        ({"image": IMAGE}, "image"), ({"container": {"image": IMAGE}}, "container.image"),
        ({"container": {"mounts": ["/a:/a"], "mount_home": True}}, "container.mounts, container.mount_home"),
    ],
)  # fmt: skip
def test_an_image_without_a_runtime_is_named(tmp_path: Path, sections: dict[str, Any], fields: str) -> None:
    assert [one for one in bundle(tmp_path, "slurm", **sections).notes if one.startswith(f"{fields}: not used")]


def test_what_is_used_gets_no_note(tmp_path: Path) -> None:
    notes = bundle(tmp_path, "slurm", container={"runtime": "podman", "image": IMAGE}, retry={"max_retries": 3}).notes
    assert not [note for note in notes if "not used" in note]
