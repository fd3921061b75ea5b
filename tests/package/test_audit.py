"""The audit of what users install: what a finding, a clean answer and no answer at all look like. No request leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.publish import audit
from tests.support import optional
from tests.support.web_server import WebServer, web_server

# What OSV answers for a package with one known vulnerability; the same answer goes to every question here.
ANSWER = {
    "vulns": [
        {
            "id": "PYSEC-2099-1",
            "schema_version": "1.7.0",
            "summary": "Made up.",
            "modified": "2099-01-01T00:00:00Z",
            "affected": [
                {
                    "package": {"name": "click", "ecosystem": "PyPI"},
                    "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}],
                }
            ],
        }
    ]
}


def audited(checkout: Path, address: str) -> subprocess.CompletedProcess[str]:
    """Audit the launcher at that server (2 s)."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if not shutil.which("pip-audit", path=path):
        optional.skip("tools", "pip-audit is not installed")
    return subprocess.run(
        [checkout / "scripts" / "audit", "launcher", "--service", "osv"],
        env={**os.environ, "PATH": path, "PYTHON": sys.executable, "AUDIT_OSV_URL": address},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def asked(server: WebServer) -> set[str]:
    return {f"{one.body['package']['name']}=={one.body['version']}" for one in server.sent}


def test_nothing_known_passes_and_every_package_was_asked_for(checkout: Path) -> None:
    with web_server() as server:
        server.answer = "{}"
        done = audited(checkout, server.url)
    assert done.returncode == 0, done.stderr
    assert asked(server) == {pin.lower().replace("_", "-") for pin in audit.pins("launcher")}


def test_a_finding_names_package_flaw_and_fix(checkout: Path) -> None:
    with web_server() as server:
        server.answer = json.dumps(ANSWER)
        done = audited(checkout, server.url)
    assert done.returncode == audit.FOUND
    assert "PYSEC-2099-1 (fixed in 99.0): Made up." in done.stdout


def test_no_answer_is_not_taken_for_a_clean_one(checkout: Path) -> None:
    with web_server() as server:
        server.status = 503
        done = audited(checkout, server.url)
    assert done.returncode == audit.UNANSWERED
    assert done.stderr.splitlines()[-1].startswith("audit: osv did not answer for every package")


@pytest.mark.parametrize("what", ["ampere", "cuda12", "v100", "cpu"])
def test_a_lock_is_audited_whole(checkout: Path, what: str) -> None:
    text = (checkout / "qwen_job" / "facts" / "image" / what / "requirements.lock").read_text("utf-8")
    pins = audit.pins(what)
    assert len(pins) == sum("==" in line and not line.startswith((" ", "#")) for line in text.splitlines()) > 50
    assert not any("+" in pin for pin in pins)


def test_the_launcher_s_list_is_what_its_sbom_lists() -> None:
    names = {pin.partition("==")[0].lower().replace("_", "-") for pin in audit.pins("launcher")}
    assert names == {
        "annotated-types", "click", "jinja2", "markupsafe", "pydantic", "pydantic-core", "pyyaml", "typing-extensions",
        "typing-inspection",
    }  # fmt: skip
