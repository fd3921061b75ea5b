"""A chart signed with a throw-away key: packaged, verified, pushed to a real registry and verified from there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from qwen_job import __version__
from scripts.publish import chart
from scripts.publish.release_run import Refused, Run
from tests.support import optional
from tests.support.helm import WHEELS, helm, run_helm
from tests.support.registry import registry

OWNER = "a release of a test <test@example.com>"
PASSPHRASE = "not secret"


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield a secret key as text (1 s)."""
    if not shutil.which("gpg"):
        optional.skip("tools", "gpg is not installed")
    home = tmp_path_factory.mktemp("gpg")
    home.chmod(0o700)
    gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", PASSPHRASE]
    subprocess.run([*gpg, "--quick-generate-key", OWNER, "rsa2048", "sign", "never"], check=True, timeout=60)
    done = subprocess.run([*gpg, "--armor", "--export-secret-keys"], check=True, capture_output=True, text=True)
    yield done.stdout
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False, timeout=60)


def packaging(checkout: Path, folder: Path, environ: Mapping[str, str], version: str) -> Run:
    """Return a release whose source is filled, ready to package the chart with that version of helm."""
    run = Run(folder / "out", environ={**os.environ, "HELM": str(helm(version)), **environ})
    shutil.copytree(checkout / "charts", run.source / "charts")
    run.dist.mkdir()
    return run


@pytest.mark.parametrize("version", WHEELS)
def test_a_signed_chart_verifies_from_a_registry(checkout: Path, tmp_path: Path, secret: str, version: str) -> None:
    run = packaging(checkout, tmp_path, {"CHART_SIGNING_KEY": secret, "CHART_SIGNING_PASSPHRASE": PASSPHRASE}, version)
    chart.package(run)
    ring = public_ring(run.dist / chart.PUBLIC, tmp_path)
    packed = run.dist / f"qwen-job-{__version__}.tgz"
    assert OWNER in run_helm("verify", packed, "--keyring", ring, version=version)
    notes = yaml.safe_load(run_helm("show", "chart", packed, version=version))["annotations"]
    key = yaml.safe_load(notes["artifacthub.io/signKey"])
    assert key["url"].endswith(f"/releases/download/v{__version__}/{chart.PUBLIC}")
    assert key["fingerprint"] in run_helm("verify", packed, "--keyring", ring, version=version).replace(" ", "")
    with registry(tmp_path) as host:
        run_helm("push", packed, f"oci://{host}/charts", "--plain-http", version=version)
        words = ("--version", __version__, "--plain-http", "--verify", "--keyring", ring, "-d", tmp_path)
        run_helm("pull", f"oci://{host}/charts/qwen-job", *words, version=version)
    assert (tmp_path / packed.name).read_bytes() == packed.read_bytes()
    with packed.open("ab") as changed:
        changed.write(b"\0")
    with pytest.raises(AssertionError, match=r"sha256|hash|checksum"):
        run_helm("verify", packed, "--keyring", ring, version=version)


def public_ring(armoured: Path, folder: Path) -> Path:
    """Return a keyring as helm reads it, made from what the release publishes."""
    ring = folder / "public.gpg"
    subprocess.run(["gpg", "--batch", "--dearmor", "--output", ring, armoured], check=True, timeout=60)
    return ring


def test_without_a_key_the_chart_is_packaged_and_the_log_names_the_variable(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = packaging(checkout, tmp_path, {"CHART_SIGNING_KEY": ""}, "4.3.1")
    chart.package(run)
    assert [path.name for path in run.dist.iterdir()] == [f"qwen-job-{__version__}.tgz"]
    assert "CHART_SIGNING_KEY is not set" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "passphrase"), [("no key", PASSPHRASE), ("", "wrong")])
def test_a_key_that_does_not_open_ends_the_release(
    checkout: Path, tmp_path: Path, secret: str, key: str, passphrase: str
) -> None:
    environ = {"CHART_SIGNING_KEY": key or secret, "CHART_SIGNING_PASSPHRASE": passphrase}
    with pytest.raises(Refused, match="gpg failed"):
        chart.package(packaging(checkout, tmp_path, environ, "4.3.1"))
