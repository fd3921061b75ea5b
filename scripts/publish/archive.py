"""The images of a dry run: an OCI archive on this machine in the place of a push, with its digest and SBOM."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import IO, Any

from scripts.publish.release_run import Refused, Run

# Where the build writes the list of what is in the image.
SBOM = "opt/image/sbom.cdx.json"


def images(run: Run) -> None:
    """Write OUT/images/SET.tar and SET.cdx.json of each set, and the digest where a push would leave it.

    The image is $IMAGE, or localhost/qwen-job:SET as `make image SET=...` builds it with buildah. It is not compressed:
    a push compresses it, and then has another digest.

    Raises:
        Refused: there is no such image, or the archive is not what it should be.
    """
    (run.out / "digests").mkdir(parents=True, exist_ok=True)
    (run.out / "images").mkdir(exist_ok=True)
    for name in run.sets:
        image = run.environ.get("IMAGE") or f"localhost/qwen-job:{name}"
        path = run.out / "images" / f"{name}.tar"
        path.unlink(missing_ok=True)
        try:
            run.do("podman", "save", "--quiet", "--format", "oci-archive", "--uncompressed", "--output", path, image)
        except Refused as error:
            raise Refused(f"{image} cannot be read: build it first: make image SET={name}\n{error}") from None
        digest = check(path)
        path.with_name(f"{name}.cdx.json").write_bytes(file_of(path, SBOM))
        digests = run.out / "digests" / f"{name}.json"
        digests.write_text(json.dumps({"containerimage.digest": digest}), "utf-8")
        run.say(f"{path.stat().st_size:>13,} bytes  {path.name}  {digest}")


def check(path: Path) -> str:
    """Read every blob that an OCI archive names, and return the digest of its manifest.

    Raises:
        Refused: a blob is missing, or is not what its name says.
    """
    with tarfile.open(path) as archive:
        entry, manifest = _manifest(archive)
        for one in (entry, manifest["config"], *manifest["layers"]):
            content = _blob(archive, f"blobs/{one['digest'].replace(':', '/')}")
            found = hashlib.sha256()
            while part := content.read(2**20):
                found.update(part)
            if one["digest"] != f"sha256:{found.hexdigest()}":
                raise Refused(f"{path}: {one['digest']} has other content: sha256:{found.hexdigest()}")
    return str(entry["digest"])


def file_of(path: Path, name: str) -> bytes:
    """Return the content of a file of the image, from the uppermost layer that has it.

    Raises:
        Refused: no layer has it.
    """
    with tarfile.open(path) as archive:
        for one in reversed(_manifest(archive)[1]["layers"]):
            with tarfile.open(fileobj=_blob(archive, f"blobs/{one['digest'].replace(':', '/')}")) as layer:
                member = next((each for each in layer if each.name.removeprefix("./") == name), None)
                content = layer.extractfile(member) if member else None
                if content:
                    return content.read()
    raise Refused(f"{path}: the image has no {name}: build it with scripts/image/build")


def configuration(path: Path) -> dict[str, Any]:
    """Return the image's configuration: entry point, labels, history."""
    with tarfile.open(path) as archive:
        name = _manifest(archive)[1]["config"]["digest"]
        found: dict[str, Any] = json.load(_blob(archive, f"blobs/{name.replace(':', '/')}"))
    return found


def _manifest(archive: tarfile.TarFile) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the image's entry in the index, and its manifest."""
    (entry,) = json.load(_blob(archive, "index.json"))["manifests"]
    found: dict[str, Any] = json.load(_blob(archive, f"blobs/{entry['digest'].replace(':', '/')}"))
    return entry, found


def _blob(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    try:
        content = archive.extractfile(name)
    except KeyError:
        content = None
    if content is None:
        raise Refused(f"{archive.name!r} has no {name}: it is no OCI archive, or one cut short")
    return content
