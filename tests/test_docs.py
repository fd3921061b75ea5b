"""The reference pages are what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_reference_pages_are_current(checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/docs.py", "--check"], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("pattern", ["*.md", "docs/*.md", "charts/qwen-job/*.md"])
def test_every_link_leads_somewhere(checkout: Path, pattern: str) -> None:
    pages = sorted(checkout.glob(pattern))
    assert pages
    for page in pages:
        links = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text("utf-8"))
        assert [link for link in links if not (page.parent / link).exists()] == [], page
