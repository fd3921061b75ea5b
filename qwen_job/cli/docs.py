"""``qwen-job docs``."""

from __future__ import annotations

import re

import click

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
    from qwen_job.resources import resource
    from qwen_job.text import did_you_mean, json_text

    texts = _texts()
    guides = {name[5:-3]: name for name in texts if name.startswith("docs/") and not name.endswith(_CHINESE)}
    if not guides:
        raise EnvironmentFault(f"{resource()}: has no guides; install qwen-job again")
    guides |= _MORE
    names = sorted(guides)

    def read(name: str) -> dict[str, str]:
        chinese = f"docs/{name}{_CHINESE}"
        path = chinese if language == "zh" and chinese in texts else guides[name]
        title, summary = opening(texts[path])
        known = {"topic": name, "language": "zh" if path == chinese else "en", "title": title, "summary": summary}
        return known | {"text": texts[path]}

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


def _texts() -> dict[str, str]:
    """Return every page by its path in the repository; a wheel has them in one compressed file."""
    import zipfile

    from qwen_job.resources import resource

    packed = resource("pages.zip")
    if packed.is_file():
        with zipfile.ZipFile(packed) as file:
            return {name: file.read(name).decode() for name in file.namelist()}
    found = [*resource("docs").glob("*.md"), *map(resource, _MORE.values())]
    return {path.relative_to(resource()).as_posix(): path.read_text("utf-8") for path in found if path.is_file()}


def opening(page: str) -> tuple[str, str]:
    """Return the title and the first paragraph of a page."""
    title, _, rest = page.partition("\n")
    parts = re.split(r"\n\s*\n", rest.strip())
    # Neither the links to the other language, nor a heading, a table or code.
    paragraphs = [part for part in parts if not part.startswith(("[English]", "**English**", "#", "|", "```"))]
    return title.removeprefix("# "), " ".join(paragraphs[0].split()) if paragraphs else ""
