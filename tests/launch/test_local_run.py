"""The local script for real, with a stand-in for the training's Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qwen_job.cli import cli
from qwen_job.render import Bundle
from tests.jobs import PINNED, bundle

ROOT = Path(__file__).parents[2]
# Answers the question for a free port, and notes how it was called for everything else.
PYTHON = """#!/bin/bash
if [ "$1" = -c ]; then echo 29999; exit 0; fi
exec {python} - "$@" << 'CODE'
import json, os, sys
from pathlib import Path
Path(r'''{out}''').write_text(json.dumps([sys.argv[1:], dict(os.environ)]))
sys.exit(int(os.environ.get("CODE", "0")))
CODE
"""


def script(folder: Path, **sections: Any) -> Bundle:
    stand_in = folder / "python"
    stand_in.write_text(PYTHON.format(python=sys.executable, out=folder / "called.json"))
    stand_in.chmod(0o755)
    return bundle(folder, "local", output=str(folder / "run"), local={"python": str(stand_in)}, **sections)


def submit(made: Bundle, folder: Path, **env: str) -> subprocess.Popen[str]:
    (folder / "script.sh").write_text(made.text)
    code = (
        "import sys; from pathlib import Path\n"
        "from qwen_job.launch.local import LocalBackend; from qwen_job.render import Bundle\n"
        "text = Path(sys.argv[1]).read_text(); print('up', flush=True)\n"
        "sys.exit(LocalBackend().submit(Bundle('local', {'run.sh': text}, 'run.sh')).exit_code)"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    words = [sys.executable, "-c", code, str(folder / "script.sh")]
    return subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("code", [0, 7, 160])
def test_the_training_s_own_code_comes_back(tmp_path: Path, code: int) -> None:
    process = submit(script(tmp_path), tmp_path, CODE=str(code))
    process.communicate(timeout=60)
    assert process.returncode == code


def test_the_launcher_is_called_with_the_plan(tmp_path: Path) -> None:
    submit(script(tmp_path, env={"GREETING": "it's\n$x", "run": "/elsewhere"}), tmp_path).communicate(timeout=60)
    arguments, env = json.loads((tmp_path / "called.json").read_text())
    assert arguments[:8] == [
        "-m",
        "qwen_job.node.launcher",
        "--nnodes",
        "1",
        "--node_rank",
        "0",
        "--nproc_per_node",
        "2",
    ]
    assert arguments[-2:] == ["--config", f"{tmp_path}/run/train.yaml"]
    assert (env["GREETING"], env["run"], env["NCCL_DEBUG"]) == ("it's\n$x", "/elsewhere", "WARN")


def test_a_complete_run_is_left_alone_whatever_the_script_s_length(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "done.json").touch()
    made = script(tmp_path)
    process = submit(Bundle("local", {"x": made.text + "# more\n" * 100_000}, "x"), tmp_path)
    assert "is complete (done.json)" in process.communicate(timeout=60)[1] and process.returncode == 0
    assert not (tmp_path / "called.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_the_training(tmp_path: Path, number: signal.Signals) -> None:
    made = script(tmp_path)
    wait = (
        f"#!/bin/bash\nif [ \"$1\" = -c ]; then echo 1; exit; fi\ntrap 'exit 160' TERM USR1\n"
        f"touch {tmp_path}/ready\nfor _ in $(seq 200); do sleep 0.05; done\n"
    )
    (tmp_path / "python").write_text(wait)
    process = submit(made, tmp_path)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 160


@pytest.mark.parametrize(("python", "why"), [("isolated", "No module named 'qwen_job'"), ("gone", "No such file")])
def test_a_python_without_qwen_job_is_named_with_what_to_do(tmp_path: Path, python: str, why: str) -> None:
    made = script(tmp_path)
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/bin/bash\nexec {sys.executable} -I -S "$@"\n')
    if python == "gone":
        stand_in.unlink()
    process = submit(made, tmp_path)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 5
    (line,) = (line for line in said.splitlines() if "ignored variables" not in line)
    assert line.startswith(f"qwen-job: local.python: {stand_in} cannot run qwen_job (") and why in line
    assert line.endswith("activate the environment that has it, or write the path of that environment's Python")


@pytest.mark.parametrize("written", [False, True])
def test_submit_runs_its_own_python_unless_the_job_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    for name in ("own", "other"):
        (tmp_path / name).write_text(
            f'#!/bin/bash\nif [ "$1" = -c ]; then echo 1; exit; fi\ntouch {tmp_path}/{name}.ran\n'
        )
        (tmp_path / name).chmod(0o755)
    job = (
        PINNED | {"output": str(tmp_path / "run")} | ({"local": {"python": str(tmp_path / "other")}} if written else {})
    )
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "own"))
    result = CliRunner().invoke(cli, ["submit", str(tmp_path / "job.yaml"), "-t", "local"])
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.glob("*.ran")] == ["other.ran" if written else "own.ran"]
    shown = CliRunner().invoke(cli, ["render", str(tmp_path / "job.yaml"), "-t", "local"]).stdout
    assert f"{tmp_path}/own" not in shown


HOLDER = """
import sys, time
from pathlib import Path
from qwen_job.run.lease import Lease
Lease(Path(sys.argv[1]), print, renew=0.2).take(print)
print("taken", flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_folder_in_which_something_trains_is_left_alone(tmp_path: Path, elsewhere: bool) -> None:
    made, run = script(tmp_path), tmp_path / "run"
    program = HOLDER
    if elsewhere:
        program = "import qwen_job.run.lease as l; l.machine = lambda: 'another/machine'\n" + program
    with subprocess.Popen([sys.executable, "-c", program, run], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline()
        refused = submit(made, tmp_path)
        said = refused.communicate(timeout=120)[1]
        assert refused.returncode == 2, said
        assert f"process {holder.pid} on" in said
        assert not (run / "train.yaml").exists()
        holder.kill()
    free = submit(made, tmp_path)
    assert free.communicate(timeout=120) and free.returncode == 0


def test_a_holder_s_name_sends_nothing_to_the_terminal(tmp_path: Path) -> None:
    made, lease = script(tmp_path), tmp_path / "run" / "launch" / "lease"
    lease.parent.mkdir(parents=True)
    lease.write_text("a" * 32 + " 1 elsewhere 1:1 \x1b[2Jjob\n")
    process = submit(made, tmp_path)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    assert "job was using" in said
    assert "\x1b" not in said
