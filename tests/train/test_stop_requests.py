"""A stop request is answered within about a second in every phase in which no step is under way.

The limits here are generous, for busy machines; before, each of these waited for a minute or more.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support import optional
from tests.support.ports import free_port
from tests.train import tiny

pytestmark = pytest.mark.train

SOON = 15.0
# A worker that marks the moment when FUNCTION is called, and waits there: in C, where no Python handler runs, or not.
STUCK = """
import sys, time
from datetime import timedelta
from pathlib import Path
from importlib import import_module

def stuck(*_, **__):
    Path(sys.argv[1]).touch()
    if sys.argv[2] == "in C":
        from torch.distributed import TCPStore
        TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=300), wait_for_workers=False).get("never")
    time.sleep(300)

module, _, name = sys.argv[3].rpartition(".")
setattr(import_module(module), name, stuck)
from qwen_job.train.__main__ import main
code = main(["--config", sys.argv[4]])
sys.stderr.flush()
import os
os._exit(code)
"""


def ends_soon(process: subprocess.Popen[str]) -> str:
    """Wait for the process, which must not take long, and return what it printed."""
    began = time.monotonic()
    try:
        output, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert time.monotonic() - began < SOON, output
    assert "Traceback" not in output, output
    return output


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_launcher_that_waits_for_the_others_leaves(tmp_path: Path, rank: int) -> None:
    train_yaml = tiny.write_run(tmp_path / "alone")
    port = free_port()
    words = ["--nnodes", "2", "--node_rank", str(rank), "--master_addr", "127.0.0.1", "--master_port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen_job.node.launcher", *words, "--rdzv_timeout", "300", "--", "--config", train_yaml],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=tiny.environment(),
    )
    if rank:
        assert process.stdout
        assert "node 1 of 2" in process.stdout.readline()
    else:

        def listens() -> bool:
            return any(one.laddr.port == port for one in psutil.Process(process.pid).net_connections("tcp"))

        wait_until(listens, process)
    process.send_signal(signal.SIGTERM)
    output = ends_soon(process)
    assert process.returncode == 160, output
    assert "SIGTERM before training started" in output


@pytest.mark.parametrize(
    ("how", "where", "words"),
    [
        ("in Python", "qwen_job.train.attempt._data", "before the first step"),
        ("in C", "qwen_job.train.setup.build_trainer", "before the first step"),
        ("in C", "qwen_job.train.export.export", "while the model was exported"),
    ],
)
def test_a_worker_leaves_whatever_it_waits_for(tmp_path: Path, how: str, where: str, words: str) -> None:
    train_yaml = tiny.write_run(tmp_path / "stuck", training__max_steps=2)
    mark = tmp_path / "mark"
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, mark, how, where, train_yaml],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=tiny.environment(),
    )
    wait_until(mark.exists, process)
    time.sleep(0.2)  # to be inside the wait
    process.send_signal(signal.SIGTERM)
    output = ends_soon(process)
    assert process.returncode == 160, output
    assert output.count(words) == 1, output
    (stop,) = tiny.metrics(train_yaml.parent, "stop")
    assert stop["exit_code"] == 160
    assert words in stop["reason"]
    if "exported" in words:
        code, output = tiny.run(train_yaml, processes=1)
        assert code == 0, output
        assert [line["step"] for line in tiny.metrics(train_yaml.parent, "step")] == [1, 2]


def test_the_preparation_of_a_pod_ends_at_term_as_its_first_process() -> None:
    words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c"]
    program = (
        "import sys, time; from qwen_job.node import prepare_job\n"
        "prepare_job.prepare_job = lambda _: (print('preparing', flush=True), time.sleep(300))\n"
        "sys.exit(prepare_job.main(['--config', 'x']))"
    )
    process = subprocess.Popen([*words, program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if process.stdout and "preparing" not in process.stdout.readline():
        optional.skip("root", "no namespace of its own for processes can be made here: it needs root")
    (first,) = psutil.Process(process.pid).children()
    first.send_signal(signal.SIGTERM)
    ends_soon(process)
    assert process.returncode == 128 + signal.SIGTERM
