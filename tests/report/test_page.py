"""The report counts every second once, survives what a crash leaves, and holds nothing from elsewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from qwen_job.cli.report import report
from qwen_job.errors import UsageError
from qwen_job.report.closing import write_pages
from qwen_job.report.model_card import write_model_card
from qwen_job.report.page import main_figures, write_report
from qwen_job.report.plot import Series, chart, nice_ticks, smooth, thin
from qwen_job.report.summary import against_plan, summarize
from qwen_job.report.timeline import account, attempts, effective_share, last_versions

SETTINGS = """
name: <b>客服</b>
world_size: 2
model: {name: Qwen/Qwen-1_8B-Chat, source: modelscope, revision: null}
data: {train: [{path: /data/a.json, weight: 1.0}], eval: [], max_length: 512, system_prompt: "</td><script>"}
training: {learning_rate: 1.0e-05}
plan: {memory_bytes_per_gpu: 2000000000, step_seconds: 2.0, tokens_per_second: 500.0,
  memory_items: {weights: 1500000000, "one layer's backward": 500000000, CUDA context: 400000000, torn: x},
  memory_capacity_bytes: 4000000000}
"""


def event(kind: str, time: float, step: int, **values: Any) -> dict[str, Any]:
    return {"type": kind, "time": time, "step": step, **values}


def step(time: float, number: int) -> dict[str, Any]:
    values = {"loss": 3.0 - number / 10, "tokens": 1000, "tokens_per_second": 480.0, "step_seconds": 2.0}
    return event("step", time, number, **values, memory_bytes=1 << 30, mfu=0.4, learning_rate=1e-5, grad_norm=1.0)


# Killed at step 3 after a save at step 1; the second attempt trains 2 and 3 again.
EVENTS = [
    event("start", 100, 0, attempt=0, resumed_from=None, host="n1", world_size=2),
    step(112, 1),
    event("save", 115, 1, pause_seconds=1.0),
    step(117, 2),
    step(119, 3),
    event("start", 149, 1, attempt=1, resumed_from=1, host="n2", world_size=2),
    step(156, 2),
    step(158, 3),
    event("eval", 161, 3, loss=2.5, perplexity=12.18),
    event("end", 165, 3, train_seconds=20.0),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "train.yaml").write_text(SETTINGS)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in EVENTS))
    (tmp_path / "done.json").write_text(json.dumps({"version": 1, "step": 3, "total_steps": 3, "train_loss": 2.8}))
    return tmp_path


def test_every_second_is_counted_once() -> None:
    seconds = account(attempts(EVENTS))
    assert seconds == {"productive": 6.0, "evaluating": 3.0, "checkpointing": 7.0, "restarting": 45.0, "lost": 4.0}
    assert sum(seconds.values()) == 165 - 100
    assert effective_share(seconds) == pytest.approx(6 / 65)


def test_steps_trained_again_count_in_their_last_version() -> None:
    assert [(line["step"], line["time"]) for line in last_versions(attempts(EVENTS), "step")] == [
        (1, 112), (2, 156), (3, 158),
    ]  # fmt: skip


def test_the_report_has_the_figures(run: Path) -> None:
    text = write_report(run).read_text()
    for figure in ("2.7", "12.18", "3,000", "1.0 GiB", "planned 1.9 GiB", "9.2%", "no final event"):
        assert figure in text, figure
    assert main_figures(run)[-1] == "Effective training time: 9.2%"


def test_the_planned_memory_is_drawn_beside_the_measured_peak(run: Path) -> None:
    text = write_report(run).read_text()
    assert "One GPU: 2.2 of 3.7 GiB, 1.5 GiB free" in text and "measured peak: 1.00 GiB" in text
    for item in ("weights: 1.40 GiB", "one layer&#x27;s backward: 0.47 GiB", "CUDA context: 0.37 GiB"):
        assert item in text, item
    assert "torn" not in text
    (run / "train.yaml").write_text(SETTINGS.replace("memory_items", "other"))
    assert "Planned memory" not in write_report(run).read_text()


def test_a_mixture_shows_how_its_tokens_were_routed(run: Path) -> None:
    dense = write_report(run).read_text()
    routed = {"expert_load_max": 1.75, "expert_load_min": 0.25, "router_entropy": 2.0}
    lines = [{**line, **routed} if line["type"] == "step" else line for line in EVENTS]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = write_report(run).read_text()
    for words in ("Greatest expert load", "1.75", "least 0.25; no token is dropped", "Router entropy"):
        assert words in text and words not in dense, words


def test_planned_and_measured_stand_side_by_side(run: Path) -> None:
    lines = main_figures(run)
    assert "Peak memory: 1.0 GiB (planned 1.9 GiB)" in lines
    assert "Seconds per step: 2 (planned 2)" in lines
    assert against_plan(run) == {
        "planned": {"memory_bytes": 2e9, "step_seconds": 2.0, "tokens_per_second": 500.0},
        "measured": {"memory_bytes": float(1 << 30), "step_seconds": 2.0, "tokens_per_second": 480.0},
    }


class _Page(HTMLParser):
    """Collects tags, addresses and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br", "line", "circle", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "circle", "polyline"):
            assert self.open.pop() == tag


def test_the_page_is_whole_offline_and_quotes_what_users_wrote(run: Path) -> None:
    text = write_report(run).read_text()
    page = _Page(text)
    assert page.open == [] and page.addresses == [] and page.tags.count("script") == 1 and "b" in page.tags
    assert "url(" not in text and "@import" not in text
    assert "&lt;b&gt;客服&lt;/b&gt;" in text
    assert page.tags.count("svg") == 7


@pytest.mark.parametrize(
    "lines",
    [
        "",
        '{"type": "start"',
        '[1]\n{"type":"step"}\n{"type":"step","step":"x","time":"y"}\n',
        '{"type":"step","step":1,"time":5,"loss":null,"tokens":true}\n\x00\xff\n',
        '{"type":"step","step":1,"time":5,"loss":NaN,"memory_bytes":1e999}\n',
        '{"type":"end","step":0,"time":3,"train_seconds":-5}\n',
    ],
)
def test_torn_metrics_give_a_report_all_the_same(tmp_path: Path, lines: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(lines)
    (tmp_path / "heartbeat").write_text('{"state": "training", "step": 7')
    (tmp_path / "train.yaml").write_text("plan: [")
    text = write_report(tmp_path).read_text()
    assert text.rstrip().endswith("</html>")
    _Page(text)


def test_any_prefix_of_the_metrics_gives_a_report(run: Path) -> None:
    whole = (run / "metrics.jsonl").read_text()
    for end in range(0, len(whole), 97):
        (run / "metrics.jsonl").write_text(whole[:end])
        seconds = summarize(run).seconds
        assert all(value >= 0 for value in seconds.values())
        write_report(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run folder"):
        write_report(tmp_path)


def test_the_command_prints_path_and_share(run: Path) -> None:
    result = CliRunner().invoke(report, [str(run)])
    assert result.stdout == f"{run / 'report.html'}\n"
    assert "Effective training time: 9.2%" in result.stderr


def test_ticks_are_round_and_cover_the_range() -> None:
    assert nice_ticks(0, 10) == [0, 2.5, 5, 7.5, 10]
    assert nice_ticks(3, 3) == pytest.approx([2.6, 2.8, 3.0, 3.2, 3.4])
    ticks = nice_ticks(-0.013, 0.0471)
    assert ticks[0] <= -0.013 and ticks[-1] >= 0.0471 and len(ticks) <= 7


def test_thinning_keeps_every_spike() -> None:
    points = [(float(x), 100.0 if x == 4711 else 1.0) for x in range(10_000)]
    kept = thin(points)
    assert len(kept) <= 400 and (4711.0, 100.0) in kept and kept == sorted(kept)


def test_smoothing_keeps_a_constant() -> None:
    assert [y for _, y in smooth([(float(x), 2.5) for x in range(50)])] == pytest.approx([2.5] * 50)


def test_a_chart_stays_within_its_frame() -> None:
    drawing = chart([Series("a", [(1.0, 5.0), (2.0, 7.0)]), Series("p", [(0.0, 9.0)], "planned")], str)
    heights = [float(value) for value in re.findall(r'y\d?="([\d.]+)"', drawing)]
    assert heights and all(0 <= value <= 240 for value in heights)
    assert chart([Series("p", [(0.0, 9.0)], "planned")], str) == ""


def test_the_model_card_tells_data_settings_and_figures(run: Path) -> None:
    (run / "model").mkdir()
    data = run / "train.json"
    data.write_text("[]")
    (run / "train.yaml").write_text(SETTINGS.replace("/data/a.json", str(data)))
    text = write_model_card(run).read_text()
    assert "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945" in text
    assert "base_model: Qwen/Qwen-1_8B-Chat" in text
    lines: list[str] = []
    write_pages(run, lines.append)
    assert lines[0] == f"Effective training time: 9.2%, the report is in {run / 'report.html'}"
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "transformers", "vLLM", "chat", "model.chat of the original code",
    ]  # fmt: skip
    assert "| learning_rate | 1e-05 |" in text and "| Held-out loss | 2.5 |" in text


def test_the_sizes_of_what_gpus_split_are_among_the_settings(run: Path) -> None:
    (run / "model").mkdir()
    texts = write_report(run).read_text(), write_model_card(run).read_text()
    assert not [text for text in texts if "parallel_size" in text]
    (run / "train.yaml").write_text(f"{SETTINGS}sequence_parallel_size: 4\n")
    (run / "deepspeed.json").write_text('{"expert_parallel": {"enabled": true, "autoep_size": 8}}')
    page, card = write_report(run).read_text(), write_model_card(run).read_text()
    assert re.search(r">sequence_parallel_size</td><td>4<.*>expert_parallel_size</td><td>8<", page, re.S)
    assert "| sequence_parallel_size | 4 |" in card and "| expert_parallel_size | 8 |" in card


def test_an_attempt_names_how_many_ranks_shared_a_row(run: Path) -> None:
    assert "2 ranks, n2" in (page := write_report(run).read_text()) and "to a row" not in page
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines.replace('"host": "n2"', '"host": "n2", "sequence_parallel_size": 2'))
    page = write_report(run).read_text()
    assert "2 ranks, n1" in page and "2 ranks, 2 to a row, n2" in page


@pytest.mark.parametrize(
    "block", ["[]", "8", '{"autoep_size": 8}', '{"enabled": false, "autoep_size": 8}',
              '{"enabled": true, "autoep_size": true}', '{"enabled": true, "autoep_size": "8"}']
)  # fmt: skip
def test_what_is_not_split_or_damaged_is_not_among_the_settings(run: Path, block: str) -> None:
    (run / "train.yaml").write_text(f"{SETTINGS}sequence_parallel_size: 1\n")
    (run / "deepspeed.json").write_text(f'{{"expert_parallel": {block}}}')
    assert summarize(run).parallel_sizes == {}
    assert "parallel_size" not in write_report(run).read_text()


@pytest.mark.parametrize(
    ("model", "base", "original"),
    [
        ("{name: Qwen/Qwen-1_8B-Chat/, source: modelscope, cache_dir: /c}", "Qwen/Qwen-1_8B-Chat", "modelscope"),
        ("{name: Qwen/Qwen2.5-0.5B-Instruct, source: huggingface}", "Qwen/Qwen2.5-0.5B-Instruct", None),
        ("{name: HERE/qwen1, source: local}", "local", "qwen1"),
        ("{name: HERE/qwen2, source: local}", "local", None),
        ("{name: qwen-1_8b-chat, source: random}", "local", None),
    ],
)
def test_the_ways_to_use_a_model_are_those_that_work(
    model: str, base: str, original: str | None, run: Path, tmp_path: Path
) -> None:
    for name in ("qwen1", "qwen2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": name.replace("n1", "n")}))
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
    section = f"model: {model}".replace("HERE", str(tmp_path))
    (run / "train.yaml").write_text(re.sub("model: {.*}", section, SETTINGS))
    text = write_model_card(run).read_text()
    assert yaml.safe_load(text.split("---")[1])["base_model"] == base
    assert "transformers 4.51.0 or newer" in text and str(tmp_path) not in text.replace(f"{tmp_path}/qwen1", "")
    lines: list[str] = []
    write_pages(run, lines.append)
    told = "\n".join(lines)
    assert f"vllm serve {run / 'model'}" in told and f"qwen-job chat {run}" in told
    exports = [line for line in [*lines, *text.splitlines()] if "--layout qwen1" in line]
    assert len(exports) == (0 if original is None else 2)
    assert all(f"--original {'/c/models/' if original == 'modelscope' else tmp_path}" in line for line in exports)


def test_a_page_that_cannot_be_written_does_not_fail_the_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "model").touch()
    lines: list[str] = []
    write_pages(tmp_path, lines.append)
    assert lines[0].startswith("write_model_card: ") and (tmp_path / "report.html").exists()
