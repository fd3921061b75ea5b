"""The steps that reach a registry or sign something; a dry run prints their commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from scripts.publish import archive, chart
from scripts.publish.release_run import ROOT, SETS, Refused, Run

# What cosign's bundle of a file is called.
SIGNATURE = ".sigstore.json"


def images(run: Run) -> None:
    """Build and push an image per set, with SBOM and provenance, and keep what docker says of it in OUT/digests.

    With --archive, what was built here is written as OCI archives instead.
    """
    if run.archive:
        archive.images(run)
        return
    (run.out / "digests").mkdir(parents=True, exist_ok=True)
    for name in run.sets:
        arguments = {
            "SET": name,
            "VERSION": run.version,
            "REVISION": run.git("rev-parse", "HEAD"),
            "DEBIAN_PINS": "recent",
            # The CPU set's torch is on an index of its own.
            "PIP_EXTRA_INDEX_URL": run.environ.get("TORCH_CPU_INDEX", "") if name == "cpu" else "",
            "SOURCE_DATE_EPOCH": run.epoch,
        }
        words = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        cache = run.environ.get("IMAGE_CACHE", "")
        words += (
            ["--cache-from", f"{cache},scope={name}", "--cache-to", f"{cache},scope={name},mode=max"] if cache else []
        )
        run.publish(
            "docker", "buildx", "build", *words, "--attest", "type=sbom", "--attest", "type=provenance,mode=max",
            "--tag", f"{run.image}:{run.tag}-{name}", "--push",
            "--metadata-file", run.out / "digests" / f"{name}.json", ROOT,
        )  # fmt: skip


def sign(run: Run) -> None:
    """Sign every image by its digest, and every file with a bundle beside it: keyless, as the workflow itself."""
    for image in _released(run):
        run.publish("cosign", "sign", "--yes", "--recursive", image)
    for path in _files(run):
        run.publish("cosign", "sign-blob", "--yes", "--bundle", _signature(path), path)


def mirror(run: Run) -> None:
    """Copy images and chart to a second registry, by digest, and sign the copies; nothing without $SECOND_REGISTRY."""
    second = run.environ.get("SECOND_REGISTRY", "").rstrip("/")
    if not second:
        run.say("SECOND_REGISTRY is not set: nothing to copy")
        return
    for name, image in zip(SETS, _released(run), strict=True):
        copy = f"{second}/qwen-job"
        run.publish("docker", "buildx", "imagetools", "create", "--tag", f"{copy}:{run.tag}-{name}", image)
        run.publish("cosign", "sign", "--yes", "--recursive", f"{copy}@{image.partition('@')[2]}")
    chart.push(run, f"oci://{second}/charts")


def publish(run: Run) -> None:
    """Push the chart beside the images, and create the release of the tag with its notes and files."""
    registry, _, owner = run.image.rpartition("/")[0].partition("/")
    chart.push(run, f"oci://{registry}/{owner}/charts")
    run.publish(
        "gh", "release", "create", run.tag, "--verify-tag", "--title", f"qwen-job {run.version}",
        "--notes-file", run.out / "notes.md", *(one for path in _files(run) for one in (path, _signature(path))),
    )  # fmt: skip


def _released(run: Run) -> Iterator[str]:
    for digest in (run.digests()[name] for name in SETS):
        yield f"{run.image}@{digest}"


def _files(run: Run) -> list[Path]:
    """Return what is published as files, without the signatures.

    Raises:
        Refused: nothing was built.
    """
    paths = sorted(path for path in run.dist.glob("*") if not path.name.endswith(SIGNATURE))
    if not paths:
        raise Refused(f"{run.dist} has no files: run the step build first")
    return paths


def _signature(path: Path) -> str:
    return f"{path}{SIGNATURE}"
