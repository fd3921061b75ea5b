"""What mkdocs calls while it builds a page: the language switch of the header leads to the same page."""

from __future__ import annotations

from typing import Any

# mkdocs leaves these as they are, but would change a relative link that leads out of the language's folder.
_PLACES = {"en": "https://en.invalid/", "zh": "https://zh.invalid/"}


def on_page_context(context: dict[str, Any], *, config: Any, **_: Any) -> dict[str, Any]:
    """Offer both languages."""
    config["extra"]["alternate"] = [
        {"name": name, "lang": lang, "link": _PLACES[lang]} for lang, name in (("en", "English"), ("zh", "中文"))
    ]
    return context


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Point them at this page; the Chinese site is the folder zh of the English one."""
    root = "../" * page.url.count("/")
    links = {"en": f"{root}../{page.url}", "zh": f"{root}zh/{page.url}", config["theme"]["language"]: "./"}
    for lang, link in _PLACES.items():
        output = output.replace(f'"{link}"', f'"{links[lang]}"')
    return output
