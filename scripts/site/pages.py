"""The pages of the documentation site: the repository's own Markdown, with links that lead somewhere on the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[2]
HOME = "https://github.com/qwen-job/qwen-job"
LANGUAGES = ("en", "zh")
# Page of the site -> file of the repository; a page without a Chinese file is in English in both languages.
PAGES = {
    "index.md": "README.md",
    **{path.name: f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")) if ".zh-CN" not in path.name},
    "chart.md": "charts/qwen-job/README.md",
    "benchmarks.md": "BENCHMARKS.md",
    "changes.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
NAVIGATION = {
    "Start": ("快速开始", ("index.md", "how-do-i.md", "examples.md", "tour.md")),
    "Guides": ("指南", ("training.md", "plan.md", "watching.md", "serving.md", "image.md")),
    "Clusters": ("集群", ("slurm.md", "kubernetes.md", "chart.md")),
    "Reference": ("参考", ("job.md", "cli.md", "python.md", "models.md")),
    "Project": ("项目", ("architecture.md", "contributing.md", "benchmarks.md", "changes.md")),
}
_LINK = re.compile(r"(\]\()(?!https?://|mailto:|#)([^)\s#]+)((?:#[^)\s]*)?\))")
# The line that switches the language on a page: the site's header does that.
_SWITCH = re.compile(r"^(\*\*English\*\*|\[English\]\([^)]*\)) · .*\n\n?", re.MULTILINE)
_FENCE = re.compile(r"(^[ \t]*```.*?^[ \t]*```[ \t]*$)", re.DOTALL | re.MULTILINE)
_LIST_AFTER_TEXT = re.compile(r"^(?![-*|#>\s]|\d+\. )(.+\n)(?=[-*] |1\. )", re.MULTILINE)


class BrokenLink(Exception):
    """A page links to a file that the repository does not have."""


def source(page: str, language: str) -> str:
    """Return the file of the repository that a page is made from."""
    path = PAGES[page]
    chinese = f"{path.removesuffix('.md')}.zh-CN.md"
    return chinese if language == "zh" and (ROOT / chinese).is_file() else path


def text(page: str, language: str) -> str:
    """Return a page's Markdown for the site.

    Raises:
        BrokenLink: a link leads to no file.
    """
    path = source(page, language)
    parts = _FENCE.split(_SWITCH.sub("", (ROOT / path).read_text("utf-8"), count=1))
    # Every second part is a block of code, which stays as it is.
    prose = "".join(part if number % 2 else _prose(part, path) for number, part in enumerate(parts))
    if language == "zh" and ".zh-CN" not in path:
        # An English page among Chinese ones: their headings, and so their anchors, are other words.
        prose = re.sub(r"(\]\([\w.-]+\.md)#[^)]*\)", r"\1)", prose)
    return prose


def _prose(part: str, path: str) -> str:
    # Python-Markdown starts a list only after an empty line, GitHub also without one.
    spaced = _LIST_AFTER_TEXT.sub(r"\1\n", part)
    return _LINK.sub(lambda found: found[1] + _target(found[2], path) + found[3], spaced)


def _target(link: str, path: str) -> str:
    """Return where a link of a file leads on the site: to another page, or to the file on the project's host."""
    wanted = posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(link)))
    for page, name in PAGES.items():
        if wanted in (name, f"{name.removesuffix('.md')}.zh-CN.md"):
            return page
    if not (ROOT / wanted).exists():
        raise BrokenLink(f"{path}: {link}: does not exist")
    return f"{HOME}/{'tree' if (ROOT / wanted).is_dir() else 'blob'}/main/{wanted}"


def navigation(language: str, present: set[str]) -> list[dict[str, list[str]]]:
    """Return mkdocs' nav of the pages that are present; one that no section names is a guide."""
    named = {page for _, pages in NAVIGATION.values() for page in pages}
    more = {"Guides": sorted(present - named)}
    return [
        {
            chinese if language == "zh" else english: [
                page for page in (*pages, *more.get(english, ())) if page in present
            ]
        }
        for english, (chinese, pages) in NAVIGATION.items()
    ]
