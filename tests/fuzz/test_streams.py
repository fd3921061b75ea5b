"""The door of the streams and the terminal: whatever the shell hands over, a documented exit code and no mixed files."""

# ruff: noqa: E501 - one case a line
from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from qwen_job.chat.conversation import ToolCall
from qwen_job.cli import COMMANDS
from qwen_job.infer.chat import Chat
from qwen_job.infer.reply import Piece, Reply
from qwen_job.infer.terminal import Screen, answer_all
from qwen_job.text import visible
from tests.fuzz.harness import Box, Outcome, judge
from tests.jobs import PINNED
from tests.support.run_folders import run_folder

QWEN_JOB = f"{sys.executable} -m qwen_job"
EVIL = "a\x1b]0;pwned\x07\x1b[2J\x9b31m\u202eb\u2066\rc"
COMMAND_LINES = ["plan job.yaml", "plan none.yaml", "plan -", "render job.yaml -t slurm"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a job.yaml that is right."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "job.yaml").write_text(yaml.safe_dump(PINNED))
    return folder


def shell(line: str, folder: Path) -> Outcome:
    """Run a line of bash and return the outcome of its first command."""
    done = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], cwd=folder, capture_output=True, timeout=120, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_closed_and_full_streams(place: Path, line: str) -> None:
    script = f"""
        run() {{ {QWEN_JOB} {line}; echo $? >> codes; }}
        rm -f codes
        run >/dev/null 2>err1 </dev/null
        run >out2 2>&- </dev/null
        run 2>err3 >&- </dev/null
        run 2>err4 >/dev/full </dev/null
        run 2>err5 <&- >/dev/null
        run >/dev/null 2>/dev/full </dev/null
        run >&- 2>&- <&-
    """
    subprocess.run(["bash", "-c", script], cwd=place, timeout=300, check=True)
    plain, no_errors, no_output, full, no_input, full_errors, none = map(int, (place / "codes").read_text().split())
    assert no_errors == full_errors == plain
    assert no_output == full == (plain or 5)
    assert none == (5 if line == "plan -" else plain or 5)
    assert no_input == (5 if line == "plan -" else plain)
    for name in ("err1", "err3", "err4", "err5"):
        text = (place / name).read_text()
        assert "Traceback" not in text and "internal error" not in text, text
    assert plain or "standard output" in (place / "err4").read_text()


def test_a_reader_that_goes_away_is_no_fault(place: Path) -> None:
    for line in ("schema", "render job.yaml -t slurm"):
        outcome = shell(f"{QWEN_JOB} {line} | true", place)
        assert outcome.code in (0, 141) and b"error" not in outcome.stderr, outcome.text


def test_two_renders_at_the_same_moment_never_mix(tmp_path: Path) -> None:
    """One wins, the other is refused or writes the same; with --force the last one wins as a whole."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**PINNED, "name": "tiny", "output": f"/runs/{name}"}))
    for number, force in enumerate(["", "--force", ""]):
        words = f"render -t hostfile --set hostfile.hosts=[a] -o out{number} {force}"
        script = f"{QWEN_JOB} {words} one.yaml & a=$!; {QWEN_JOB} {words} two.yaml & b=$!; wait $a; x=$?; wait $b; echo $x $?"
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
        )
        codes = sorted(map(int, done.stdout.splitlines()[-1].split()))
        assert codes == ([0, 0] if force else [0, 5]), done
        texts = [path.read_text() for path in (tmp_path / f"out{number}").iterdir()]
        named = [{run for run in ("one", "two") if f"/runs/{run}" in text} for text in texts]
        assert len({run for runs in named for run in runs}) == 1, named


def test_a_render_waits_for_one_that_is_writing(box: Box, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(PINNED))
    for number in range(2):
        outcome = box.command("render", "job.yaml", "-t", "slurm", "-o", "out", folder=tmp_path)
        judge(outcome, number)
        assert outcome.code == 0


def _evil_lines(folder: Path) -> Iterator[list[str]]:
    """Yield a command line for every command, with text of others wherever one can stand."""
    job, run, data = folder / f"{EVIL}.yaml", folder / f"run{EVIL}", folder / f"{EVIL}.jsonl"
    job.write_text(yaml.safe_dump({**PINNED, EVIL: {EVIL: EVIL}, "train": {EVIL: 1}, "env": {EVIL: EVIL}}))
    (folder / "job.yaml").write_text(yaml.safe_dump({**PINNED, "sweep": {f"train.{EVIL}": [1, 2]}}))
    run_folder(run, train_yaml=yaml.safe_dump({"name": EVIL, "model": {"name": EVIL}}),
         heartbeat=json.dumps({"state": EVIL, "step": 1}))  # fmt: skip
    data.write_text(
        "".join(
            json.dumps(row) + "\n" for row in ({EVIL: EVIL}, {"messages": [{"role": EVIL, "content": EVIL}]}, [EVIL])
        )
    )
    (folder / "sweep.json").write_text(
        json.dumps({"runs": [{"folder": f"run{EVIL}", "values": {EVIL: EVIL}}, {"folder": EVIL, "values": {}}]})
    )
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": EVIL, EVIL: EVIL}))
    paths = [str(job), str(run), str(data), EVIL, str(folder / "model"), str(folder)]
    for words in (["plan"], ["render", "-t", "slurm"], ["render", "-t", "kubernetes"], ["submit", "-t", "local"], ["sweep"],
                  ["report"], ["data", "check"], ["data", "show"], ["data", "clean"], ["status"], ["logs"], ["cancel"], ["train"],
                  ["model", "check"], ["model", "convert"], ["model", "fetch"], ["plan", "--fit"], ["chat"], ["evaluate"],
                  ["init"], ["templates", "export"], ["completion"], ["doctor", "-t"], ["node", "check", "--gpus"],
                  ["schema"], ["watch"], ["exit-codes"], ["docs"], []):  # fmt: skip
        yield from ([*words, path] for path in paths)
        yield [*words, f"--{EVIL}"]
    for words in (["plan", "job.yaml"], ["sweep", "job.yaml"], ["render", "job.yaml", "-t", EVIL], ["plan", "--set", EVIL],
                  ["plan", str(job), "--set", f"{EVIL}=1"], ["plan", "-f", EVIL], ["sweep", ".", "--json"],
                  ["data", "check", str(data), "--json"], ["data", "check", str(data), "--all"],
                  ["status", str(run), "--json"], ["render", str(job), "-t", "slurm", "--diff"]):  # fmt: skip
        yield words


def test_no_command_prints_what_a_terminal_obeys(box: Box, tmp_path: Path) -> None:
    here = {"XDG_STATE_HOME": str(tmp_path / "state"), "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    index = tmp_path / "state/qwen-job/jobs.jsonl"
    index.parent.mkdir(parents=True)
    entry = {"target": "slurm", "id": "7", "name": EVIL, "run": str(tmp_path / f"run{EVIL}"), "time": 1.0}
    index.write_text(json.dumps(entry) + "\n" + json.dumps({**entry, "id": EVIL}) + "\n")
    tried = set()
    for words in _evil_lines(tmp_path):
        if words[:1] in (["chat"], ["evaluate"], ["watch"]) and words[-1] != EVIL:
            continue  # these would load torch, or go on
        outcome = box.command(*words, folder=tmp_path, environ={**here, "PATH": "/nowhere"})
        tried.add(words[0] if words else "")
        exact = words[0:2] == ["data", "clean"] or words[0:1] == ["report"] or words[:2] == ["model", "fetch"]
        judge(outcome, words, script=exact)  # a path for a script is exact
    assert set(COMMANDS) <= tried


def test_a_terminal_shows_a_path_and_a_script_escaped(place: Path) -> None:
    """Into a pipe both are exact; on a terminal nothing is obeyed."""
    run_folder(place / f"run{EVIL}")
    for words in (["report", f"run{EVIL}"], ["render", "job.yaml", "-t", "local", "--set", 'env.A="\\e[2J"']):
        parent, child = pty.openpty()
        process = subprocess.Popen([sys.executable, "-m", "qwen_job", *words], cwd=place, stdout=child, stderr=child)
        os.close(child)
        shown = b""
        while True:
            try:
                piece = os.read(parent, 65536)
            except OSError:
                break
            if not piece:
                break
            shown += piece
        os.close(parent)
        assert process.wait() == 0, shown
        assert b"\x1b]" not in shown and b"\x1b[2J" not in shown and b"\\x1b" in shown


class _Mouthy:
    """A model that writes control sequences wherever it can."""

    reply = Reply(EVIL, EVIL, (ToolCall(EVIL, {EVIL: [EVIL]}),), (EVIL,))
    pending = reply.calls[0]

    def take(self, text: str) -> Iterator[Piece]:
        yield from (Piece(EVIL, reasoning=True), *map(Piece, ("one\n\ttwo ", EVIL, "\x1b", "[31m好")))


def test_a_model_s_answer_is_only_shown() -> None:
    chat: Chat = _Mouthy()  # type: ignore[assignment]
    out, aside = io.StringIO(), io.StringIO()
    answer_all(chat, ["?"], Screen(out, aside))
    text, *calls = out.getvalue().split("好\n")
    assert text == "one\n\ttwo " + visible(EVIL, None, keep="\n\t") + "\\x1b[31m"
    assert json.loads(calls[0]) == {"name": EVIL, "arguments": {EVIL: [EVIL]}}
    shown = out.getvalue() + aside.getvalue()
    assert not any(sign in shown for sign in "\x1b\x07\x9b\u202e\u2066\r")
