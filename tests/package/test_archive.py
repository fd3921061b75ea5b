"""What is refused as the OCI archive of a release; tests/image/built.py writes one of a real image."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from scripts.publish import archive
from scripts.publish.release_run import Refused, Run


def tarball(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as made:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return content.getvalue()


def image(path: Path, *, change: str = "", drop: str = "") -> tuple[Path, str]:
    """Write an archive of an image with two layers, both with an SBOM; return it and its digest."""
    blobs: dict[str, bytes] = {}

    def blob(data: bytes) -> dict[str, str]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"digest": f"sha256:{digest}"}

    layers = [blob(tarball({f"./{archive.SBOM}": text})) for text in (b"old", b"new")]
    manifest = blob(json.dumps({"config": blob(b"{}"), "layers": layers}).encode())
    parts = {"index": json.dumps({"manifests": [manifest]}).encode(), "layer": blobs[layers[0]["digest"][7:]]}
    files = {"index.json": parts["index"], **{f"blobs/sha256/{digest}": data for digest, data in blobs.items()}}
    for name, data in list(files.items()):
        if change and data == parts[change]:
            files[name] = data + b"!"
        if drop and data == parts[drop]:
            del files[name]
    path.write_bytes(tarball(files))
    return path, manifest["digest"]


def test_the_digest_is_the_manifest_s(tmp_path: Path) -> None:
    path, digest = image(tmp_path / "a.tar")
    assert archive.check(path) == digest


def test_the_uppermost_layer_has_the_file(tmp_path: Path) -> None:
    path, _ = image(tmp_path / "a.tar")
    assert archive.file_of(path, archive.SBOM) == b"new"
    with pytest.raises(Refused, match="the image has no etc/other: build it with scripts/image/build"):
        archive.file_of(path, "etc/other")


def test_a_changed_layer_is_refused(tmp_path: Path) -> None:
    path, _ = image(tmp_path / "a.tar", change="layer")
    with pytest.raises(Refused, match="has other content"):
        archive.check(path)


@pytest.mark.parametrize("part", ["layer", "index"])
def test_an_archive_cut_short_is_refused(tmp_path: Path, part: str) -> None:
    path, _ = image(tmp_path / "a.tar", drop=part)
    with pytest.raises(Refused, match="it is no OCI archive, or one cut short"):
        archive.check(path)


def test_an_image_that_is_not_here_names_the_command_that_builds_it(tmp_path: Path) -> None:
    podman = tmp_path / "podman"
    podman.write_text('#!/bin/bash\necho "Error: $6: image not known" >&2\nexit 125\n')
    podman.chmod(0o755)
    environ = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    with pytest.raises(Refused, match="localhost/qwen-job:v100 cannot be read: build it first: make image SET=v100"):
        archive.images(Run(tmp_path / "out", archive=True, sets=["v100"], environ=environ))
