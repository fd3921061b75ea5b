"""Build the documentation site, both languages, as static pages with search:  python scripts/site/build.py [FOLDER]

--media FOLDER   with the pictures and the recording that scripts/site/media.py has made, on a page of their own

Needs scripts/site/requirements.txt (`make site` installs it). A broken link or a missing anchor fails the build.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.site import pages, tour  # noqa: E402

WORDS = {
    "en": {
        "description": "One job.yaml to a fully fine-tuned Qwen chat model, on Slurm, Kubernetes or ssh hosts",
        "light": "Switch to light",
        "dark": "Switch to dark",
    },
    "zh": {
        "description": "一份 job.yaml，得到全参数微调的 Qwen 对话模型：Slurm、Kubernetes 或 ssh 主机",
        "light": "切换到浅色",
        "dark": "切换到深色",
    },
}


FEATURES = ["navigation.sections", "navigation.top", "search.highlight", "search.suggest", "content.code.copy"]
EXTENSIONS = ["tables", "attr_list", "md_in_html", "pymdownx.highlight", "pymdownx.superfences"]
# The anchors of a heading as GitHub makes them, Chinese ones too; plain YAML has no form for a function.
TOC = """\
markdown_extensions:
- toc:
    permalink: true
    slugify: !!python/object/apply:pymdownx.slugs.slugify {kwds: {case: lower}}
"""
VALIDATION = {"nav": {"omitted_files": "warn"}, "links": {"not_found": "warn", "anchors": "warn"}}


class BuildError(Exception):
    """mkdocs has refused the pages."""


def settings(language: str, docs: Path, out: Path, present: set[str]) -> dict[str, Any]:
    """Return mkdocs.yml of one language. Nothing in it makes a browser ask another host: no fonts, no repository."""
    words = WORDS[language]
    palette = [
        {"media": f"(prefers-color-scheme: {mode})", "scheme": scheme, "primary": "indigo", "accent": "indigo"}
        | {"toggle": {"icon": f"material/{icon}", "name": words["dark" if mode == "light" else "light"]}}
        for mode, scheme, icon in (("light", "default", "weather-night"), ("dark", "slate", "weather-sunny"))
    ]
    return {
        "site_name": "qwen-job",
        "site_description": words["description"],
        "docs_dir": str(docs),
        "site_dir": str(out),
        "nav": pages.navigation(language, present),
        "theme": {
            "name": "material",
            "language": language,
            "font": False,
            "logo": "assets/icon.svg",
            "favicon": "assets/icon.svg",
            "palette": palette,
            "features": FEATURES,
        },
        "extra": {"generator": False, "alternate": []},
        "extra_css": ["assets/site.css"],
        "hooks": [str(ROOT / "scripts" / "site" / "hooks.py")],
        "plugins": [{"search": {"lang": ["en", "zh"] if language == "zh" else ["en"]}}],
        "markdown_extensions": EXTENSIONS,
        "validation": VALIDATION,
        "strict": True,
    }


def stage(language: str, docs: Path, media: Path | None) -> set[str]:
    """Write a language's pages and files into ``docs``; return the names of the pages."""
    assets = docs / "assets"
    assets.mkdir(parents=True)
    shutil.copy(ROOT / "charts" / "qwen-job" / "icon.svg", assets)
    shutil.copy(ROOT / "scripts" / "site" / "site.css", assets)
    present = set(pages.PAGES)
    for page in present:
        (docs / page).write_text(pages.text(page, language), "utf-8")
    if media is not None:
        from scripts.site.film import film

        shutil.copytree(media, docs / "media")
        (docs / "media" / tour.RECORDING).write_text(film(media / tour.CAST), "utf-8")
        (docs / "tour.md").write_text(tour.PAGE[language], "utf-8")
        present.add("tour.md")
    return present


def build(out: Path, media: Path | None = None) -> None:
    """Build both languages into ``out``, the Chinese pages into its folder zh.

    Raises:
        BrokenLink: a page links to a file that does not exist.
        BuildError: carries what mkdocs has found wrong.
    """
    with tempfile.TemporaryDirectory(prefix="qwen-job-site-") as folder:
        for language in pages.LANGUAGES:
            work = Path(folder) / language
            present = stage(language, work / "docs", media)
            built = settings(language, work / "docs", out / ("zh" if language == "zh" else ""), present)
            text = yaml.safe_dump(built, allow_unicode=True, sort_keys=False)
            config = work / "mkdocs.yml"
            config.write_text(text.replace("markdown_extensions:\n", TOC), "utf-8")
            words = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(config)]
            # It advertises its successor in every build otherwise. With --quiet it would overlook warnings.
            environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
            done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BuildError("\n".join(re.findall(r"(?:WARNING|ERROR|Error|Aborted).*", done.stdout + done.stderr)))


def main() -> int:
    """Build what the command line names; 1 when a page is wrong."""
    parser = argparse.ArgumentParser(description="Build the documentation site.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "site")
    parser.add_argument("--media", type=Path)
    given = parser.parse_args()
    if given.media and not (given.media / tour.CAST).is_file():
        print(f"--media: {given.media} has no {tour.CAST}; python scripts/site/media.py makes it", file=sys.stderr)
        return 1
    try:
        build(given.folder.resolve(), given.media)
    except (pages.BrokenLink, BuildError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{given.folder}: python -m http.server -d {given.folder}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
