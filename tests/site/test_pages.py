"""The pages of the site, without its generator: every guide is there, in both languages, and every link leads on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.site import pages
from scripts.site.tour import PAGE

EVERY = [(page, language) for page in pages.PAGES for language in pages.LANGUAGES]


@pytest.mark.parametrize(("page", "language"), EVERY)
def test_every_link_of_a_page_leads_to_a_page_or_to_the_project(page: str, language: str) -> None:
    prose = re.sub(r"(?ms)^[ \t]*```.*?^[ \t]*```", "", pages.text(page, language))
    for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", prose):
        assert link in pages.PAGES or link.startswith(("https://", "http://")), link


def test_every_guide_is_in_the_navigation_once_and_in_both_languages(checkout: Path) -> None:
    guides = {path.name for path in (checkout / "docs").glob("*.md")}
    for language in pages.LANGUAGES:
        sections = pages.navigation(language, set(pages.PAGES))
        shown = [page for section in sections for one in section.values() for page in one]
        assert sorted(shown) == sorted(pages.PAGES)
        assert {name for name in guides if ".zh-CN" not in name} <= set(shown)
    chinese = {Path(pages.source(page, "zh")).name for page in pages.PAGES}
    assert {name for name in guides if ".zh-CN" in name} <= chinese and "README.zh-CN.md" in chinese


def test_a_broken_link_names_the_page_and_the_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "plan.md").write_text("See [it](nowhere.md).\n")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    with pytest.raises(pages.BrokenLink, match=r"docs/plan\.md: nowhere\.md: does not exist"):
        pages.text("plan.md", "en")


def test_an_english_page_of_the_chinese_site_links_to_no_english_heading() -> None:
    english, chinese = (pages.text("chart.md", language) for language in pages.LANGUAGES)
    assert "](kubernetes.md#a-runtime-for-kubeflows-trainjobs)" in english
    assert "](kubernetes.md)" in chinese and "kubernetes.md#" not in chinese


def test_code_stays_as_it_is_and_a_list_begins_after_an_empty_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    code = "```yaml\nwords: [a](b.md)\n- item\n```\n"
    (tmp_path / "docs" / "plan.md").write_text(
        f"# Plan\n\n[English](plan.md) · [中文](plan.zh-CN.md)\n\nText\n- item\n- item\n\n{code}"
    )
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    assert pages.text("plan.md", "en") == f"# Plan\n\nText\n\n- item\n- item\n\n{code}"


def test_the_tour_is_the_same_in_both_languages() -> None:
    english, chinese = (re.findall(r"\]\(([^)]*)\)", PAGE[language]) for language in pages.LANGUAGES)
    assert english == chinese
