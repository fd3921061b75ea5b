"""All runs of a folder in a browser, and a sweep on one page: what they show, and what a stranger gets."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from qwen_job.cli.report import report
from qwen_job.errors import UsageError
from qwen_job.report.browse import find_runs, serve
from qwen_job.report.page import page
from qwen_job.report.summary import summarize
from qwen_job.report.sweep_page import sweep_page, write_sweep_page
from tests.support.browser import Seen, hosts, see
from tests.support.run_folders import EVENTS, SETTINGS, run_folder

NASTY = "<img src=http://192.0.2.1/x>"


def write_sweep(folder: Path, rates: list[float]) -> Path:
    """Write a sweep of which the last run has not started; a higher rate has a lower loss."""
    runs = [{"folder": f"rate-{rate}", "values": {"train.learning_rate": rate}} for rate in rates]
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"runs": runs}))
    for number, run in enumerate(runs[:-1]):
        events = [{**one, "loss": one["loss"] / (number + 1)} if "loss" in one else one for one in EVENTS]
        run_folder(folder / str(run["folder"]), metrics_jsonl="".join(json.dumps(one) + "\n" for one in events))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with a finished run, one that trains now, one that fell silent, a nasty name, and a sweep."""
    root = tmp_path / "runs"
    run_folder(root / "finished")
    for name, age in (("team/now", 3.0), ("team/silent", 4000.0), (NASTY.replace("/", "_"), 3.0)):
        beat = {"state": "training", "step": 8, "total_steps": 10, "loss": 0.25, "time": time.time() - age}
        run_folder(root / name, heartbeat=json.dumps(beat), train_yaml=yaml.safe_dump({**SETTINGS, "name": NASTY}))
        (root / name / "done.json").unlink()
        text = "".join(json.dumps(event) + "\n" for event in EVENTS[:-1])
        (root / name / "metrics.jsonl").write_text(text)
    write_sweep(root / "sweep", [1e-5, 2e-5, 4e-5])
    (root / "team" / "data").mkdir()
    return root


@pytest.fixture
def port(runs: Path) -> Iterator[int]:
    server = serve(runs)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def get(port: int, path: str, host: str = "") -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), dict(answer.getheaders())


def test_every_run_below_a_folder_is_found_with_its_state(runs: Path) -> None:
    states = {entry.path: entry.state for entry in find_runs(runs)}
    assert states["finished"] == "done" and states["team/now"] == "training" and states["team/silent"] == "silent"
    assert states["sweep"] == "sweep" and states["sweep/rate-1e-05"] == "done"
    assert len(states) == 7


def test_links_lead_from_the_list_to_every_run_and_from_a_sweep_to_its_runs(port: int) -> None:
    status, text, headers = get(port, "/")
    links = re.findall(r'href="(/run/[^"]+)"', text)
    assert status == 200 and len(links) == 7 and headers["Content-Security-Policy"].startswith("default-src 'none'")
    for link in links:
        status, shown, _ = get(port, link)
        assert status == 200 and "<h1>" in shown, link
    _, shown, _ = get(port, "/run/sweep/")
    within = re.findall(r'href="(/run/sweep/[^"]+)"', shown)
    assert len(within) == 2 and all(get(port, link)[0] == 200 for link in within)


@pytest.mark.parametrize(
    "path",
    [
        "/run/../",
        "/run/..%2f..%2fetc",
        "/run//etc",
        "/run/team/data/",
        "/run/%00",
        "/etc/passwd",
        "/run/none",
        "/run/" + "x" * 9000,
    ],
)
def test_nothing_but_runs_is_served(port: int, path: str) -> None:
    assert get(port, path)[0] == 404


def test_a_link_out_of_the_folder_is_not_followed(port: int, runs: Path, tmp_path: Path) -> None:
    run_folder(tmp_path / "secret")
    (runs / "link").symlink_to(tmp_path / "secret")
    assert get(port, "/run/link/")[0] == 404 and "link" not in [entry.path for entry in find_runs(runs)]


def test_another_sites_name_for_this_address_is_refused(port: int) -> None:
    assert get(port, "/", host="evil.example")[0] == get(port, "/", host=f"evil.example:{port}")[0] == 403
    assert get(port, "/", host=f"localhost:{port}")[0] == 200


def test_the_server_is_on_loopback_only_and_a_wrong_folder_is_refused(tmp_path: Path) -> None:
    server = serve(tmp_path)
    assert server.server_address[0] == "127.0.0.1"
    server.server_close()
    with pytest.raises(UsageError, match="is not a folder"):
        serve(tmp_path / "none")
    refused = CliRunner().invoke(report, [str(tmp_path), "--port", "9"])
    assert isinstance(refused.exception, UsageError)


def test_a_sweeps_page_has_every_run_best_first(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", [1e-5, 2e-5, 4e-5])
    text = write_sweep_page(sweep).read_text()
    order = re.findall(r'<a href="(rate-[^/]+)/report.html">', text)
    assert order == ["rate-2e-05", "rate-1e-05"], "by held-out loss"
    assert "not started" in text and "3 runs, 2 done" in text
    assert text.count("<polyline") >= 4 and "learning_rate 2e-05" in text
    assert "refresh" not in text, "nothing trains"
    with pytest.raises(UsageError, match=r"sweep\.json"):
        sweep_page(tmp_path)


def test_the_command_writes_a_sweeps_page(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", [1e-5, 2e-5])
    done = CliRunner().invoke(report, [str(sweep)])
    assert done.exit_code == 0 and done.output.strip().endswith("report.html")
    assert (sweep / "report.html").exists()


def test_sixty_runs_fit_a_page(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", [number / 1e6 for number in range(1, 61)])
    text = sweep_page(sweep)
    assert text.count("<tr>") == 61 and text.count('class="faint"') >= 50 and len(text) < 1_000_000


def age_of(seen: Seen) -> str:
    (text,) = re.findall(r"<time[^>]*>([^<]*)</time>", seen.document)
    return str(text)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(400, False), (1400, True)])
def test_in_a_browser_every_page_fits_and_asks_nobody_else(port: int, tmp_path: Path, width: int, dark: bool) -> None:
    """Chromium on the list, a live run with a hostile name, and a sweep. Four seconds each."""
    measure = """<script>
      const box = (part) => {
        const range = document.createRange();
        range.selectNodeContents(part);
        return range.getBoundingClientRect();
      };
      const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
      const over = [...document.querySelectorAll("figure")].filter((figure) => {
        const [title, names] = ["figcaption", ".names"].map((part) => figure.querySelector(part));
        return title && names && meet(box(title), box(names));
      }).length;
      document.title = `${innerWidth} ${document.documentElement.scrollWidth} ${over}`;
    </script></body>"""
    for number, path in enumerate(("/", "/run/team/now/", "/run/sweep/")):
        seen = see(f"http://127.0.0.1:{port}{path}", tmp_path / str(number), width=width, dark=dark)
        assert hosts(seen) == {"127.0.0.1"}, seen.addresses
        assert re.match(r"written \d+ s ago", age_of(seen)) and "may have ended" not in age_of(seen)
        assert "192.0.2.1" not in "".join(seen.addresses) and "<img" not in seen.document
        copy = tmp_path / f"{number}.html"
        copy.write_text(get(port, path)[1].replace("</body>", measure))
        shown = see(f"file://{copy}", tmp_path / f"{number}-copy", width=width, dark=dark, seconds=0.5)
        (inner, needed, over) = re.findall(r"<title>(\d+) (\d+) (\d+)</title>", shown.document)[0]
        assert int(needed) <= int(inner), f"{path} is {needed} wide, the window {inner}"
        assert over == "0", f"{path}: {over} legends cover the titles of their charts"


@pytest.mark.slow
def test_in_a_browser_the_filter_of_the_list_stays_over_a_refresh(port: int, tmp_path: Path) -> None:
    """What the list's own script does, in Chromium: type, choose, and count what is left. Two seconds."""
    act = """<script>
      words.value = "TEAM"; words.dispatchEvent(new Event("input"));
      const names = () => [...document.querySelectorAll("tbody tr")].filter((row) => !row.hidden)
        .map((row) => row.cells[0].textContent).sort().join();
      const first = names(); state.value = "silent"; state.dispatchEvent(new Event("change"));
      document.title = `${first}|${names()}|${count.textContent}|${sessionStorage.getItem("filter")}`;
    </script></body>"""
    copy = tmp_path / "list.html"
    copy.write_text(get(port, "/")[1].replace("</body>", act))
    seen = see(f"file://{copy}", tmp_path / "seen", seconds=0.5)
    title = re.findall(r"<title>(.*?)</title>", seen.document)[0]
    assert title == 'team/now,team/silent|team/silent|1|["TEAM","silent"]'


@pytest.mark.slow
def test_in_a_browser_an_old_page_of_a_run_says_so(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", metrics_jsonl=json.dumps(EVENTS[0]) + "\n")
    (run / "done.json").unlink()
    (run / "report.html").write_text(page(summarize(run), rewritten_every=120, now=time.time() - 7200))
    seen = see(f"file://{run}/report.html", tmp_path / "seen", seconds=1)
    assert age_of(seen).startswith("written 2 h ago") and "the run may have ended" in age_of(seen)
    assert hosts(seen) == set()
