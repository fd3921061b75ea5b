"""A wheel and an sdist that a package index accepts, the same bytes every time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import yaml

from qwen_job import __version__
from tests.package.conftest import Built, build
from tests.support import optional

PAGES = "https://github.com/qwen-job/qwen-job"
# What a checkout holds beside the files of git, and no package may.
LEFT_OUT = (
    ".git", ".venv*", ".cache", ".*_cache", ".hypothesis", ".coverage*", "__pycache__", "runs", "dist", ".gpu-wheels",
)  # fmt: skip


def metadata(built: Built) -> Message:
    with zipfile.ZipFile(built.wheel) as wheel:
        return Parser().parsestr(wheel.read(f"qwen_job-{__version__}.dist-info/METADATA").decode())


def test_an_index_accepts_both_files(built: Built) -> None:
    twine = shutil.which("twine", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not twine:
        optional.skip("tools", "twine is not installed")
    done = subprocess.run(
        [twine, "check", "--strict", *built], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout + done.stderr


def test_another_checkout_gives_the_same_bytes(built: Built, checkout: Path, tmp_path: Path) -> None:
    """Other times and another umask; hatchling writes neither into the files (3 s)."""
    copy = shutil.copytree(checkout, tmp_path / "elsewhere", ignore=shutil.ignore_patterns(*LEFT_OUT))
    for path in copy.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
        os.utime(path, (1, 1))
    again = build(copy, tmp_path / "again")
    assert [one.read_bytes() for one in again] == [one.read_bytes() for one in built]


def test_the_metadata_is_complete(built: Built) -> None:
    found = metadata(built)
    assert found["Author"] == "the qwen-job authors"
    assert found["Requires-Python"] == ">=3.10"
    assert found["License-Expression"] == "Apache-2.0"
    urls = dict(line.split(", ") for line in found.get_all("Project-URL", []))
    assert set(urls) == {"Homepage", "Documentation", "Repository", "Issues", "Changelog"}
    assert {"qwen", "slurm", "kubernetes"} <= set(found["Keywords"].split(","))


def test_the_index_page_links_to_this_version(built: Built) -> None:
    page = metadata(built).get_payload()
    links = re.findall(r"\]\(([^)\s]+)\)", page)
    assert f"{PAGES}/blob/v{__version__}/docs/how-do-i.md" in links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_every_extra_is_explained(built: Built, checkout: Path) -> None:
    developers = {"check", "test"}
    for readme in ("README.md", "README.zh-CN.md"):
        explained = set(re.findall(r"^\| `(\w+)` \|", (checkout / readme).read_text("utf-8"), re.MULTILINE))
        assert explained == set(metadata(built).get_all("Provides-Extra", [])) - developers, readme


def test_the_packages_hold_no_more_than_the_repository(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        # Its dependencies take 11.6 MB; together they stay below 15 MB.
        assert sum(file.file_size for file in wheel.infolist()) < 3.4e6
    with tarfile.open(built.sdist) as sdist:
        names = [name.partition("/")[2] for name in sdist.getnames()]
    assert {"CHANGELOG.md", "Dockerfile", "tests/conftest.py"} <= set(names)
    assert [name for name in names if re.match(r"\.venv|\.git/|runs/|dist/|\.cache/", name)] == []


def test_the_image_s_build_gets_every_file_that_the_wheel_takes_in(checkout: Path) -> None:
    project = (checkout / "pyproject.toml").read_text("utf-8").partition("force-include]")[2].partition("\n[")[0]
    folders = re.findall(r'^"(\w+)[^"]*" = "qwen_job/_resources/', project, re.MULTILINE)
    taken = {*folders, "docs", "AGENTS.md", "CHANGELOG.md"}
    copied = " ".join(
        re.findall(r"^COPY (.*) /src/", (checkout / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    ).split()
    allowed = (checkout / ".dockerignore").read_text("utf-8").splitlines()
    assert {"docs", "configs", "charts"} <= taken <= set(copied)
    assert {f"!{name}" for name in taken} <= set(allowed)


def test_the_version_has_one_place(checkout: Path) -> None:
    citation = yaml.safe_load((checkout / "CITATION.cff").read_text("utf-8"))
    chart = yaml.safe_load((checkout / "charts" / "qwen-job" / "Chart.yaml").read_text("utf-8"))
    assert {citation["version"], chart["version"], chart["appVersion"]} == {__version__}
    assert f"\n## {__version__}\n" in (checkout / "CHANGELOG.md").read_text("utf-8")
