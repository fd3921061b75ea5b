"""The chart of a release: packaged, and signed for `helm verify` where $CHART_SIGNING_KEY has a GnuPG key.

The key is what `gpg --armor --export-secret-keys` wrote, RSA (Helm 3 reads no other), and $CHART_SIGNING_PASSPHRASE
opens it. Its public half is published with the release, and Chart.yaml says where (artifacthub.io/signKey). cosign
signs the chart as well, as a file and in the registry, without a key.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml

from scripts.publish.release_run import NO_DIGEST, Refused, Run

PUBLIC = "qwen-job-chart-key.asc"


class Key(NamedTuple):
    """A key as Helm reads it: ``keyring`` has the secret half, ``public`` the other; both are gone after packaging."""

    fingerprint: str
    owner: str
    keyring: Path
    public: Path
    passphrase: Path


def package(run: Run) -> None:
    """Package OUT/source's chart into OUT/dist; with a key, sign it and verify the signature.

    Raises:
        Refused: the key cannot be read, or helm fails.
    """
    helm, chart = run.environ.get("HELM", "helm"), run.source / "charts" / "qwen-job"
    words: list[str | Path] = [helm, "package", chart, "--destination", run.dist]
    if not run.environ.get("CHART_SIGNING_KEY", "").strip():
        run.say("(CHART_SIGNING_KEY is not set: the chart gets no provenance file for helm verify)")
        run.do(*words)
        return
    with _unpacked(run) as key:
        _name_key(chart / "Chart.yaml", key, run)
        run.do(*words, "--sign", "--key", key.owner, "--keyring", key.keyring, "--passphrase-file", key.passphrase)
        run.do(helm, "verify", packaged(run), "--keyring", key.public)


def packaged(run: Run) -> Path:
    """Return the packaged chart.

    Raises:
        Refused: nothing was built.
    """
    chart = run.dist / f"qwen-job-{run.version}.tgz"
    if not chart.exists():
        raise Refused(f"{chart} does not exist: run the step build first")
    return chart


def push(run: Run, address: str) -> None:
    """Push the chart, with its provenance file if it has one, to ``oci://...``, and sign what the registry took.

    Raises:
        Refused: nothing was built, or helm fails.
    """
    shown = run.publish(run.environ.get("HELM", "helm"), "push", packaged(run), address)
    digest = re.search(r"sha256:[0-9a-f]{64}", shown)
    if not digest and not run.dry:
        raise Refused(f"helm push named no digest to sign: {shown.strip()!r}")
    name = f"{address.removeprefix('oci://')}/qwen-job"
    run.publish("cosign", "sign", "--yes", f"{name}@{digest[0] if digest else NO_DIGEST}")


@contextmanager
def _unpacked(run: Run) -> Iterator[Key]:
    """Import the key into a folder that nobody else reads, and remove the folder afterwards."""
    with tempfile.TemporaryDirectory(prefix="chart-key-") as name:
        home = Path(name)
        key, passphrase, keyring, public = (home / one for one in ("key.asc", "passphrase", "secret.gpg", "public.gpg"))
        key.write_text(run.environ["CHART_SIGNING_KEY"], "utf-8")
        passphrase.write_text(run.environ.get("CHART_SIGNING_PASSPHRASE", ""), "utf-8")
        gpg: list[str | Path] = ["gpg", "--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback"]
        gpg += ["--passphrase-file", passphrase]
        try:
            run.do(*gpg, "--import", key)
            listed = run.do(*gpg, "--with-colons", "--list-secret-keys")
            run.do(*gpg, "--output", keyring, "--export-secret-keys")
            run.do(*gpg, "--output", public, "--export")
            run.do(*gpg, "--armor", "--output", run.dist / PUBLIC, "--export")
            lines = [line.split(":") for line in listed.splitlines()]
            owners = [line[9] for line in lines if line[0] == "uid"]
            prints = [line[9] for line in lines if line[0] == "fpr"]
            yield Key(prints[0], owners[0], keyring, public, passphrase)
        finally:
            subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], capture_output=True, check=False)


def _name_key(path: Path, key: Key, run: Run) -> None:
    """Say in Chart.yaml which key signs the chart, as Artifact Hub reads it."""
    chart = yaml.safe_load(path.read_text("utf-8"))
    url = f"https://github.com/{run.repository}/releases/download/{run.tag}/{PUBLIC}"
    chart["annotations"]["artifacthub.io/signKey"] = f"fingerprint: {key.fingerprint}\nurl: {url}\n"
    path.write_text(yaml.safe_dump(chart, sort_keys=False), "utf-8")
