"""The steps that make files: check, fill, build, notes. They run the same in a dry run."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import yaml

from scripts.publish import chart
from scripts.publish.bill import bill_of_materials
from scripts.publish.release_run import ROOT, SETS, Refused, Run


def check(run: Run) -> None:
    """Check what a tag cannot take back.

    Raises:
        Refused: another version, no notes, or uncommitted changes.
    """
    if run.tag != f"v{run.version}":
        raise Refused(f"the tag is {run.tag} and qwen_job/__init__.py says {run.version}: change one of them")
    changes(run)
    status = run.git("status", "--porcelain", "--untracked-files=no")
    if status and not run.dry:
        raise Refused(f"uncommitted changes: commit them first\n{status}")
    if status:
        run.say("(a release refuses this: uncommitted changes)")


def changes(run: Run) -> str:
    """Return the section of CHANGELOG.md about this version.

    Raises:
        Refused: there is none, or it is empty.
    """
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    found = re.search(rf"^## {re.escape(run.version)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if not found or not found[1].strip():
        raise Refused(f"CHANGELOG.md has no section '## {run.version}': say there what the release brings")
    return found[1].strip()


def fill(run: Run) -> None:
    """Copy what git knows to OUT/source, and fill in version, commit and digests; the checkout stays as it is."""
    shutil.rmtree(run.source, ignore_errors=True)
    for name in run.git("ls-files", "-z").rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (run.source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, run.source / name, follow_symlinks=False)
    path = run.source / "qwen_job" / "facts" / "release.yaml"
    values = yaml.safe_load(path.read_text("utf-8"))
    values |= {"version": run.version, "commit": run.git("rev-parse", "HEAD"), "digests": run.digests()}
    path.write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
    # The chart's default image is that of the release, too.
    run.do(sys.executable, run.source / "scripts" / "chart.py", cwd=run.source)


def build(run: Run) -> None:
    """Build wheel, sdist, chart and SBOM from OUT/source, the same bytes every time, and check them."""
    if not run.source.is_dir():
        raise Refused(f"{run.source} does not exist: run the step fill first")
    shutil.rmtree(run.dist, ignore_errors=True)
    run.dist.mkdir(parents=True)
    words: list[str | Path] = [sys.executable, "-m", "build", "--no-isolation", "--outdir", run.dist, run.source]
    run.do(*words, SOURCE_DATE_EPOCH=run.epoch)
    packages = sorted(path for path in run.dist.iterdir() if path.suffix in (".whl", ".gz"))
    run.do(sys.executable, "-m", "twine", "check", "--strict", *packages)
    chart.package(run)
    bill = bill_of_materials(next(run.dist.glob("*.whl")), ROOT / "constraints.txt", run.epoch)
    for path in (run.dist / f"qwen_job-{run.version}.cdx.json", run.out / "sbom.cdx.json"):
        path.write_text(bill, "utf-8")
    for path in sorted(run.dist.iterdir()):
        run.say(f"{path.stat().st_size:>10,} bytes  {path.name}")


def notes(run: Run) -> None:
    """Write OUT/notes.md, the text of the release."""
    digests = run.digests()
    rows = [f"| {name} | `{run.image}@{digests[name]}` |" for name in SETS]
    owner = run.repository.partition("/")[0]
    identity = f"--certificate-identity-regexp '^https://github.com/{owner}/' "
    issuer = "--certificate-oidc-issuer https://token.actions.githubusercontent.com"
    wheel = f"qwen_job-{run.version}-py3-none-any.whl"
    lines = [
        changes(run),
        "\n## Images\n",
        "| set | image |\n|---|---|",
        *rows,
        "\n## Verifying\n",
        "```sh",
        f"cosign verify {run.image}@{digests['ampere']} {identity}{issuer}",
        f"cosign verify-blob {wheel} --bundle {wheel}.sigstore.json {identity}{issuer}",
        f"gh attestation verify {wheel} --owner {owner}",
        "```",
    ]
    path: Path = run.out / "notes.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")
    run.say(f"{path}: {path.stat().st_size:,} bytes")
