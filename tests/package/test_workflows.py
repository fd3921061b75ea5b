"""The workflows of .github: linted, and every action pinned. What their steps run is tried in test_release.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import optional

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
_USES = re.compile(r"^\s*(?:- )?uses: (\S+?)@(\S+)(?: # (\S+))?$", re.MULTILINE)


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))["jobs"]
    return found


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not found:
        optional.skip("tools", f"{name} is not installed")
    return found


def test_zizmor_finds_nothing() -> None:
    """Its audits that need no network: injection, permissions, credentials, pins (0.3 s)."""
    words = [tool("zizmor"), "--offline", "--no-progress", "--quiet", ROOT / ".github"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_shellcheck_finds_nothing_in_a_step(path: Path, tmp_path: Path) -> None:
    for job in jobs(path).values():
        for step in job["steps"]:
            # An expression is a word to the shell, and of no value here.
            script = re.sub(r"\$\{\{.*?\}\}", "expression", step.get("run", ":"))
            (tmp_path / "step.sh").write_text(f"#!/bin/bash\n{script}\n")
            done = subprocess.run(
                [tool("shellcheck"), tmp_path / "step.sh"], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, script + done.stdout


def test_every_action_is_pinned_to_one_commit_and_names_its_version() -> None:
    used: dict[str, set[tuple[str, str]]] = {}
    for path in WORKFLOWS:
        text = path.read_text("utf-8")
        assert len(_USES.findall(text)) == text.count("uses: "), path
        for name, commit, version in _USES.findall(text):
            used.setdefault(name, set()).add((commit, version))
    assert {name: len(pins) for name, pins in used.items()} == dict.fromkeys(used, 1)
    for name, ((commit, version),) in used.items():
        assert re.fullmatch(r"[0-9a-f]{40}", commit) and re.fullmatch(r"v\d+\.\d+\.\d+", version), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read_and_a_job_says_what_more_it_needs(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text("utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    writes = {
        f"{path.stem}/{name}": {right for right, level in job["permissions"].items() if level == "write"}
        for name, job in workflow["jobs"].items()
        if "permissions" in job
    }
    assert writes == {
        "release": {
            "release/images": {"packages"},
            "release/release": {"attestations", "contents", "id-token", "packages"},
        },
        "site": {"site/publish": {"id-token", "pages"}},
    }.get(path.stem, {})
