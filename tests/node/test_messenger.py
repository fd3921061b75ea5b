"""What the webhooks of a run hear, and that they hear it once: over attempts, nodes, and a server that is dead."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from qwen_job.node.messenger import EXIT_SECONDS, Messenger
from qwen_job.run import ends
from qwen_job.run.folder import RunFolder
from tests.support.ports import free_port
from tests.support.web_server import WebServer, web_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    with web_server() as told:
        monkeypatch.setenv("HOOK", told.url)
        yield told


def write_run(run: Path, *events: str, **more: object) -> Path:
    hook = {"kind": "json", "url": "env:HOOK", "events": list(events or ("start", "done", "fault", "give_up"))}
    (run / "launch").mkdir(parents=True, exist_ok=True)
    (run / "train.yaml").write_text(yaml.safe_dump({"name": "chat", "output_dir": str(run), "notify": [hook], **more}))
    return run


def messenger(run: Path, rdzv_id: str = "7-0", *, in_pod: bool = False) -> Messenger:
    made = Messenger.of(run, rdzv_id, is_first=True, in_pod=in_pod)
    assert made is not None
    return made


def attempt(run: Path, code: int, *, rdzv_id: str = "7-0", in_pod: bool = False, signalled: bool = False) -> None:
    one = messenger(run, rdzv_id, in_pod=in_pod)
    one.begin()
    if code == 0:
        time.sleep(0.01)
        (run / "done.json").write_text(json.dumps({"eval_loss": 1.5}))
    one.end(code, signalled=signalled)


def heard(server: WebServer) -> list[str]:
    return [one.body["event"] for one in server.sent]


def may_follow(run: Path, rdzv_id: str, with_newer: str = "no", without: str = "no") -> None:
    RunFolder(run).last_attempt.write_text(f"{rdzv_id} {with_newer} {without}\n")


def checkpoint(run: Path, step: int) -> None:
    folder = run / "checkpoints" / f"step-{step}"
    folder.mkdir(parents=True)
    manifest = {"version": 1, "step": step, "world_size": 1, "zero_stage": 2, "files": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_run_of_three_attempts_is_heard_once_at_each_turn(tmp_path: Path, server: WebServer) -> None:
    run = write_run(tmp_path)
    for number, code in enumerate((137, 160, 0)):
        may_follow(run, f"7-{number}")
        attempt(run, code, rdzv_id=f"7-{number}")
    assert heard(server) == ["start", "fault", "done"]
    assert "exit code 137" in server.sent[1].body["reason"] and server.sent[2].body["eval_loss"] == 1.5
    attempt(run, 0)
    assert heard(server)[3:] == ["done"], "a run that was written again"


def test_a_complete_run_that_is_started_again_is_silent(tmp_path: Path, server: WebServer) -> None:
    run = write_run(tmp_path)
    attempt(run, 0)
    one = messenger(run)
    one.begin()
    one.end(0, signalled=False)
    assert heard(server) == ["start", "done"]


@pytest.mark.parametrize(
    ("with_newer", "without", "saves", "expected"),
    [
        ("no", "yes", False, "give_up"),
        ("no", "yes", True, "fault"),
        ("yes", "yes", True, "give_up"),
        ("no", "no", False, "fault"),
    ],
)
def test_the_batch_script_says_which_attempt_is_the_last(
    tmp_path: Path, server: WebServer, with_newer: str, without: str, saves: bool, expected: str
) -> None:
    run = write_run(tmp_path)
    may_follow(run, "7-0", with_newer, without)
    one = messenger(run)
    one.begin()
    if saves:
        checkpoint(run, 5)
    one.end(137, signalled=False)
    assert heard(server) == ["start", expected]
    assert ("newest checkpoint: step 5" if saves else "no checkpoint yet") in server.sent[1].body["text"]


def test_nothing_restarts_a_local_run(tmp_path: Path, server: WebServer) -> None:
    attempt(write_run(tmp_path), 137)
    assert heard(server) == ["start", "give_up"]


def test_in_a_pod_only_a_final_code_gives_up(tmp_path: Path, server: WebServer) -> None:
    run = write_run(tmp_path)
    attempt(run, 137, in_pod=True)
    attempt(run, 8, in_pod=True)
    assert heard(server) == ["start", "fault", "give_up"]


def test_the_final_code_of_another_node_counts(tmp_path: Path, server: WebServer) -> None:
    run = write_run(tmp_path)
    may_follow(run, "7-0")
    one = messenger(run)
    one.begin()
    ends.begin(run, 1)
    ends.end(run, 1, 5, 0)
    one.end(143, signalled=False)
    assert heard(server) == ["start", "give_up"]


def test_an_attempt_that_ended_without_a_word_is_reported_by_the_next(tmp_path: Path, server: WebServer) -> None:
    run = write_run(tmp_path)
    messenger(run).begin()
    server.wait_for(1)
    messenger(run, "7-1").begin()
    assert [one.body["event"] for one in server.wait_for(2)] == ["start", "fault"]
    assert "without a word" in server.sent[1].body["reason"]


def test_a_restart_in_place_is_a_fault(tmp_path: Path, server: WebServer) -> None:
    one = messenger(write_run(tmp_path))
    one.begin()
    one.restart("rank 1 was killed by SIGKILL")
    assert "SIGKILL" in [*server.wait_for(2)][1].body["reason"] and heard(server) == ["start", "fault"]


def test_a_hook_hears_only_what_it_asks_for(tmp_path: Path, server: WebServer) -> None:
    run = write_run(tmp_path, "fault")
    attempt(run, 137)
    assert heard(server) == ["give_up"], "the last fault is one too, for who does not ask for give_up"


def test_a_stop_request_is_no_fault(tmp_path: Path, server: WebServer) -> None:
    run = write_run(tmp_path, "fault", "give_up")
    may_follow(run, "7-0")
    attempt(run, 160, signalled=True)
    assert heard(server) == []


def test_the_trainers_own_reason_is_told(tmp_path: Path, server: WebServer) -> None:
    run = write_run(tmp_path)
    one = messenger(run)
    one.begin()
    line = {"type": "stop", "time": time.time(), "step": 3, "reason": "the loss is not finite", "exit_code": 7}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    one.end(7, signalled=False)
    assert server.sent[1].body["reason"] == "exit code 7: the loss is not finite"


def test_only_the_first_node_speaks(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert Messenger.of(run, "7-0", is_first=False, in_pod=False) is None
    assert Messenger.of(None, "7-0", is_first=True, in_pod=False) is None


def test_a_dead_server_delays_nothing_and_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOOK", f"http://127.0.0.1:{free_port()}/topsecret")
    began = time.monotonic()
    attempt(write_run(tmp_path), 137)
    assert time.monotonic() - began < EXIT_SECONDS
    said = capsys.readouterr().err
    assert said.count("notify[0] (json)") == 1 and "Connection refused" in said and "topsecret" not in said


def test_a_slow_server_holds_the_exit_for_a_few_seconds_only(
    tmp_path: Path, server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_job.node.messenger.EXIT_SECONDS", 0.3)
    server.delay = 20.0
    began = time.monotonic()
    attempt(write_run(tmp_path), 137)
    assert time.monotonic() - began < 5.0


def test_a_launcher_that_fails_before_training_speaks(tmp_path: Path, server: WebServer) -> None:
    """A real launcher, whose node 0 is refused: its train.yaml wants a GPU that is not here. Under two seconds."""
    run = write_run(tmp_path, "start", "give_up", device="cuda")
    command = [sys.executable, "-m", "qwen_job.node.launcher", "--", "--config", str(run / "train.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 5, done.stderr
    assert heard(server) == ["start", "give_up"] and "exit code 5" in server.sent[1].body["reason"]
