"""The launcher forwards every stop request as USR1; the ranks still report which signal came from outside."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

RANK = """
import time
from qwen_job.run.signals import StopRequest
stop = StopRequest()
stop.listen()
print("listening", flush=True)
while not stop.heard():
    time.sleep(0.01)
print(stop.reason, flush=True)
"""
LAUNCHER = f"""
import subprocess, sys
from qwen_job.node.relay import Relay
relay = Relay(60)
relay.starting()
rank = subprocess.Popen([sys.executable, "-c", {RANK!r}])
relay.pids = lambda: [rank.pid]
sys.exit(rank.wait())
"""


@pytest.mark.parametrize("first", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_rank_reports_the_first_signal_that_its_launcher_got(first: str) -> None:
    with subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "listening\n"
        launcher.send_signal(signal.Signals[first])
        assert launcher.stdout.readline() == f"signal {first}\n"
        assert launcher.wait(30) == 0
