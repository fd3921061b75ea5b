"""The built site in a real browser: nothing is loaded from elsewhere, no page scrolls sideways. Costs half a minute."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.browser import hosts, see
from tests.support.optional import skip

pytestmark = pytest.mark.slow
# Writes how much wider than the window the page is, once it has laid itself out.
_PROBE = """<script>addEventListener("load", () => setTimeout(() => {
  const root = document.documentElement;
  root.dataset.wider = root.scrollWidth - root.clientWidth;
}, 500));</script></body>"""
SEEN = [
    ("", 1400, False), ("", 390, True), ("zh", 390, False), ("examples", 390, False), ("zh/examples", 1400, True),
    ("job", 390, True), ("cli", 390, False), ("models", 390, False), ("zh/kubernetes", 390, False),
    ("chart", 1000, True), ("benchmarks", 390, False),
]  # fmt: skip


@pytest.fixture(scope="module")
def site(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Build the site; yield its folder and its address."""
    python = checkout / ".venv-site" / "bin" / "python"
    if not python.exists():
        skip("site", "there is no .venv-site; make site makes it")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [python, "scripts/site/build.py", out], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(out)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield out, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("page", "width", "dark"), SEEN)
def test_a_page_fits_its_window_and_asks_no_other_host(
    site: tuple[Path, str], page: str, width: int, dark: bool, tmp_path: Path
) -> None:
    out, address = site
    text = (out / page / "index.html").read_text("utf-8")
    (out / page / "probe.html").write_text(text.replace("</body>", _PROBE), "utf-8")
    seen = see(f"{address}/{page}{'/' if page else ''}probe.html", tmp_path, width=width, dark=dark)
    assert hosts(seen) == {"127.0.0.1"}
    assert re.findall(r'<html[^>]*data-wider="(-?\d+)"', seen.document) == ["0"]
    assert re.findall(r'<body[^>]*data-md-color-scheme="(\w+)"', seen.document) == ["slate" if dark else "default"]


def test_a_page_leads_to_itself_in_the_other_language(site: tuple[Path, str]) -> None:
    out, _ = site
    for page, here, wanted in (
        ("slurm", "en", "../zh/slurm/"), ("zh/slurm", "zh", "../../slurm/"), ("", "en", "zh/"), ("zh", "zh", "../"),
    ):  # fmt: skip
        text = (out / page / "index.html").read_text("utf-8")
        links = dict(re.findall(r'<a href="([^"]*)" hreflang="(\w+)"', text))
        assert links == {"./": here, wanted: "zh" if here == "en" else "en"}
        assert (out / page / wanted / "index.html").is_file() and "invalid" not in text


def test_the_search_knows_both_languages(site: tuple[Path, str]) -> None:
    out, _ = site
    for folder, word in (("", "gradient accumulation"), ("zh", "显存")):
        index = json.loads((out / folder / "search" / "search_index.json").read_text("utf-8"))
        assert any(word in entry["text"].replace("​", "") for entry in index["docs"]), word
