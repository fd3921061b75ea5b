"""``qwen-job docs``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import zipfile
    from pathlib import Path

# Pages beside the guides: topic -> file.
_MORE = {"agents": "AGENTS.md", "changes": "CHANGELOG.md"}
_CHINESE = ".zh-CN.md"


@click.command()
@click.argument("topic", required=False)
@click.option("--language", type=click.Choice(["en", "zh"]), default="en", show_default=True, help="zh: Chinese.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for a program: every topic, or one with its text.")
def docs(topic: str | None, language: str, as_json: bool) -> None:
    """List the pages that come with qwen-job: the guides and the changes.

    There is one for coding agents, too. With a topic, that page is printed as Markdown.

    \b
    qwen-job docs                         the topics
    qwen-job docs training | less         one of them
    qwen-job docs slurm --language zh
    """
    from qwen_job.errors import EnvironmentFault, UsageError
    from qwen_job.text import did_you_mean, json_text

    pages = _pages()
    folder = pages / "docs"
    files = [path for path in folder.iterdir() if path.name.endswith(".md")] if folder.is_dir() else []
    guides = {path.name.removesuffix(".md"): path for path in files if not path.name.endswith(_CHINESE)}
    if not guides:
        raise EnvironmentFault(f"{pages}: has no guides; install qwen-job again")
    guides |= {name: pages / file for name, file in _MORE.items()}
    names = sorted(guides)

    def read(name: str) -> dict[str, str]:
        chinese = folder / f"{name}{_CHINESE}"
        translated = language == "zh" and chinese.is_file()
        text = (chinese if translated else guides[name]).read_text("utf-8")
        title, summary = opening(text)
        known = {"topic": name, "language": "zh" if translated else "en", "title": title, "summary": summary}
        return known | {"text": text}

    if topic is None:
        found = [read(name) for name in names]
        if as_json:
            click.echo(json_text([{key: page[key] for key in page if key != "text"} for page in found], indent=2))
        else:
            width = max(map(len, names))
            click.echo("\n".join(f"{one['topic']:<{width}}  {one['title']}" for one in found))
        return
    name = topic.removesuffix(".md").removesuffix(".zh-CN")
    if name not in names:
        near = did_you_mean(name, names) or "; 'qwen-job docs' lists all"
        raise UsageError(f"no such topic: {topic!r}{near}")
    page = read(name)
    click.echo(json_text(page, indent=2) if as_json else page["text"], nl=as_json)


def _pages() -> Path | zipfile.Path:
    """Return the root of the pages, laid out as in the repository; a wheel has them in one compressed file."""
    import zipfile

    from qwen_job.resources import resource

    packed = resource("pages.zip")
    return zipfile.Path(packed) if packed.is_file() else resource()


def opening(page: str) -> tuple[str, str]:
    """Return the title and the first paragraph of a page."""
    title, _, rest = page.partition("\n")
    parts = re.split(r"\n\s*\n", rest.strip())
    # Neither the links to the other language, nor a heading, a table or code.
    paragraphs = [part for part in parts if not part.startswith(("[English]", "**English**", "#", "|", "```"))]
    return title.removeprefix("# "), " ".join(paragraphs[0].split()) if paragraphs else ""
