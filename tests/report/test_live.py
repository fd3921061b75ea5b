"""The process beside a training: figures that Prometheus's own parser reads, and a report that is current."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_job.node.companion import Companion
from qwen_job.report.exposition import Figures, exposition
from qwen_job.report.live import Live
from qwen_job.report.page import page
from qwen_job.report.summary import summarize
from qwen_job.run.metrics import Follower
from tests.support.ports import free_port
from tests.support.run_folders import EVENTS, SETTINGS, run_folder


def until(true: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.02)


def samples(text: str) -> dict[str, float]:
    """Parse with the official parser, which accepts nothing else than the format."""
    parser = pytest.importorskip("prometheus_client.parser")
    found = {}
    for family in parser.text_string_to_metric_families(text):
        assert family.documentation and family.type in ("gauge", "counter")
        for sample in family.samples:
            found[sample.name + (f"/{sample.labels['state']}" if "state" in sample.labels else "")] = sample.value
            assert sample.labels["run"]
    return found


def live_run(folder: Path, **monitor: Any) -> Path:
    settings = {**SETTINGS, "output_dir": str(folder), "monitor": {"report_every": 1, **monitor}}
    events = "".join(json.dumps(event) + "\n" for event in EVENTS[:-1])  # it has not ended
    run_folder(folder, train_yaml=yaml.safe_dump(settings), metrics_jsonl=events)
    (folder / "done.json").unlink()
    return folder


@pytest.fixture
def companion(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    started: list[Companion] = []

    def start(**monitor: Any) -> Path:
        run = live_run(tmp_path / "run", **monitor)
        started.append(Companion(run))
        return run

    yield start
    for one in started:
        one.end()


def get(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return str(answer.read().decode())


def test_prometheus_reads_every_figure(tmp_path: Path) -> None:
    found = samples(Live(live_run(tmp_path), yaml.safe_load((tmp_path / "train.yaml").read_text()), print).text())
    assert found["qwen_job_step"] == 8 and found["qwen_job_total_steps"] == 10
    assert found["qwen_job_loss"] == 0.25 and found["qwen_job_eval_loss"] == 1.0
    assert found["qwen_job_tokens_per_second"] == 100.0 and found["qwen_job_memory_bytes"] == 1e9
    assert found["qwen_job_attempts_total"] == 1
    assert found["qwen_job_state/training"] == 1 and found["qwen_job_state/done"] == 0
    assert found["qwen_job_last_step_timestamp_seconds"] == 108.0
    assert found["qwen_job_seconds_since_last_step"] == pytest.approx(time.time() - 108.0, abs=60)


def test_hostile_names_and_values_stay_in_the_format() -> None:
    nasty = 'a"b\\c\nd{}'
    figures = Figures(nasty, {"state": nasty, "total_steps": "x"}, {"step": 3, "loss": None, "time": 5.0, "mfu": 1e300})
    found = samples(exposition(figures, 7.0))
    assert found["qwen_job_step"] == 3 and found["qwen_job_seconds_since_last_step"] == 2.0
    assert "qwen_job_loss" not in found and "qwen_job_mfu_ratio" not in found
    assert samples(exposition(Figures("r"), 7.0))["qwen_job_attempts_total"] == 0


def test_the_text_keeps_up_with_the_run_and_reads_each_line_once(tmp_path: Path) -> None:
    run = live_run(tmp_path)
    live = Live(run, {"name": "r"}, print)
    live.text()
    with (run / "metrics.jsonl").open("a") as out:
        out.write(
            json.dumps({**EVENTS[8], "step": 9, "loss": 7.0}) + "\n" + json.dumps(EVENTS[0]) + "\n" + '{"type": "st'
        )
    found = samples(live.text())
    assert (found["qwen_job_step"], found["qwen_job_loss"], found["qwen_job_attempts_total"]) == (9, 7.0, 2)


def test_a_follower_of_a_long_file_begins_at_a_whole_line(tmp_path: Path) -> None:
    lines = [json.dumps({"type": "step", "step": number}) for number in range(1000)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    follower = Follower(tmp_path, most=500)
    steps = [line["step"] for line in follower.new_lines()]
    assert steps == list(range(steps[0], 1000)) and 10 < len(steps) < 30
    assert follower.new_lines() == []
    (tmp_path / "metrics.jsonl").write_text(lines[0] + "\n")
    assert [line["step"] for line in follower.new_lines()] == [0], "a file that was written anew is read anew"
    assert Follower(tmp_path / "none").new_lines() == []


def test_the_process_writes_the_figures_and_the_report_and_serves_a_port(companion: Callable[..., Path]) -> None:
    port = free_port()
    run = companion(prometheus_port=port)
    until(lambda: (run / "metrics.prom").exists() and (run / "report.html").exists())
    until(lambda: answers(port))
    until(lambda: samples(get(port)).get("qwen_job_effective_time_ratio"))
    assert samples(get(port)).keys() >= samples((run / "metrics.prom").read_text()).keys()
    with pytest.raises(urllib.error.HTTPError):
        get(port, "/etc/passwd")
    first = (run / "report.html").stat().st_mtime_ns
    until(lambda: (run / "report.html").stat().st_mtime_ns > first)
    assert [path for path in run.iterdir() if path.name.endswith("tmp")] == []


def answers(port: int) -> bool:
    try:
        return bool(get(port))
    except OSError:
        return False


def test_a_port_that_is_taken_is_named_and_the_file_is_written(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        run = live_run(tmp_path / "run", prometheus_port=port)
        process = subprocess.Popen(
            [sys.executable, "-c", "import qwen_job.report.live as live; from pathlib import Path; import sys;"
             "live._BIND_SECONDS = 0.2; live.main(Path(sys.argv[1]))", str(run)],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None and process.stdin is not None
        said = process.stderr.readline()
        process.stdin.close()
        assert process.wait(30) == 0
    assert f"monitor.prometheus_port: {port} on " in said and "write another port" in said
    assert samples((run / "metrics.prom").read_text())["qwen_job_step"] == 8


def test_a_file_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "file").touch()
    settings = {"monitor": {"prometheus_file": str(tmp_path / "file" / "x.prom"), "report_every": 0}}
    live = Live(live_run(tmp_path / "run"), settings, said.append)
    live.tick(last=True)
    live.tick(last=True)
    assert len(said) == 1 and "monitor.prometheus_file" in said[0] and "training is not affected" in said[0]
    assert not (tmp_path / "run" / "report.html").exists(), "0: only the report of the end"


def test_the_process_ends_with_its_launcher_even_a_killed_one(tmp_path: Path) -> None:
    run = live_run(tmp_path / "run")
    code = (
        "import os, sys; from pathlib import Path; from qwen_job.node.companion import Companion;"
        "c = Companion(Path(sys.argv[1])); print(c._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])
    assert (run / "metrics.prom").exists(), "it wrote a last time"


def test_signals_to_the_whole_step_do_not_end_it(tmp_path: Path) -> None:
    run = live_run(tmp_path / "other")
    one = Companion(run)
    assert one._process is not None
    for name in ("SIGUSR1", "SIGTERM", "SIGINT", "SIGHUP"):
        os.kill(one._process.pid, getattr(signal, name))
    until(lambda: (run / "report.html").exists())
    one.end()
    assert one._process.returncode == 0


def test_a_page_of_a_running_run_says_its_age_and_is_loaded_again(tmp_path: Path) -> None:
    summary = summarize(live_run(tmp_path))
    running, ended = page(summary, rewritten_every=120, now=111.0), page(summary, now=111.0)
    assert '<meta http-equiv="refresh" content="120">' in running and 'data-overdue="360"' in running
    assert "last step 3 s before that" in running
    assert "refresh" not in ended and "data-overdue=" not in ended
    for text in (running, ended):
        assert '<time datetime="111"' in text and "1970-01-01 00:01:51 UTC" in text
        assert re.findall(r'(?:src|href|url\()\s*=?["\']?(?!#)', text) == []


def live_sweep(folder: Path) -> Path:
    """Write a sweep of a run that trains and of one that has not started; returns the first."""
    (folder / "sweep").mkdir()
    runs = [{"folder": name, "values": {"train.learning_rate": rate}} for name, rate in (("a", 1e-5), ("b", 2e-5))]
    (folder / "sweep" / "sweep.json").write_text(json.dumps({"runs": runs}))
    return live_run(folder / "sweep" / "a")


def test_a_run_of_a_sweep_keeps_the_sweeps_page_current_and_the_page_says_its_age(tmp_path: Path) -> None:
    run = live_sweep(tmp_path)
    page_of_sweep = tmp_path / "sweep" / "report.html"
    live = Live(run, {"monitor": {"report_every": 120}}, pytest.fail)
    live.tick(last=True)
    text = page_of_sweep.read_text()
    assert '<meta http-equiv="refresh" content="120">' in text and 'data-overdue="360"' in text
    assert "2 runs, 0 done" in text and 'href="a/report.html"' in text
    # Another run of the sweep has just written it.
    page_of_sweep.write_text("newer")
    live._report_due = 0.0
    live.tick()
    assert page_of_sweep.read_text() == "newer"
    os.utime(page_of_sweep, (1, 1))
    live._report_due = 0.0
    live.tick()
    assert "2 runs" in page_of_sweep.read_text()


def test_no_page_is_written_for_a_sweep_that_the_run_is_not_of_or_when_reports_are_off(tmp_path: Path) -> None:
    run = live_sweep(tmp_path)
    Live(run, {"monitor": {"report_every": 0}}, pytest.fail).tick(last=True)
    Live(live_run(tmp_path / "sweep" / "other"), {}, pytest.fail).tick(last=True)
    assert (tmp_path / "sweep" / "other" / "report.html").exists()
    (tmp_path / "sweep" / "sweep.json").write_text("[")
    Live(run, {}, pytest.fail).tick(last=True)
    assert not (tmp_path / "sweep" / "report.html").exists()


def test_a_sweep_of_too_many_steps_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = live_sweep(tmp_path)
    monkeypatch.setattr("qwen_job.report.live.size_of", lambda _: 2**30)
    said: list[str] = []
    live = Live(run, {}, said.append)
    live.tick(last=True)
    live.tick(last=True)
    assert len(said) == 1 and "the sweep's report.html is not written again while training" in said[0]
