"""launch.sh with hosts that ssh cannot reach; the other hosts are stand-ins on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import bundle

# ssh as it is called here: options, the host, one command.
SSH = """#!/bin/bash
host=${@: -2:1} command=${@: -1}
case $host in
  gone*) echo "ssh: Could not resolve hostname $host: Name or service not known" >&2; exit 255 ;;
  *) exec bash -c "$command" ;;
esac
"""


def launched(
    folder: Path, hosts: str, spares: list[str], launcher: str = "torchrun"
) -> subprocess.CompletedProcess[str]:
    """Run launch.sh on ``hosts``, whose training is a program that exits with 0."""
    for name, text in {"ssh": SSH, "python": "#!/bin/bash\n[ $# -gt 0 ]\n"}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    section = {"hosts": hosts, "spare_hosts": spares, "launcher": launcher, "python": str(folder / "python")}
    nodes = {"gpu": "CPU", "nodes": hosts.count(",") + 1, "gpus_per_node": 1}
    made = bundle(folder, "hostfile", output=str(folder / "run"), cluster=nodes, hostfile=section)
    env = {**os.environ, "PATH": f"{folder}:{Path(sys.executable).parent}:/usr/bin:/bin"}
    return subprocess.run(
        ["bash", "-s"], input=made.files["launch.sh"], env=env, text=True, capture_output=True, timeout=60, check=False
    )


@pytest.mark.parametrize("launcher", ["torchrun", "pdsh"])
def test_every_host_that_cannot_be_reached_is_named_before_any_starts(tmp_path: Path, launcher: str) -> None:
    done = launched(tmp_path, "here,gone2,gone3", [], launcher)
    assert done.returncode == 5
    assert done.stderr.splitlines() == [
        f"qwen-job: {host} cannot be reached: ssh: Could not resolve hostname {host}: Name or service not known"
        for host in ("gone2", "gone3")
    ]
    assert not list((tmp_path / "run" / "launch").glob("exit.*")), "no node started"


def test_too_few_spare_hosts_are_said_and_enough_take_over(tmp_path: Path) -> None:
    done = launched(tmp_path, "here,gone2,gone3", ["spare"])
    assert done.returncode == 5
    assert done.stderr.splitlines()[2:] == ["qwen-job: gone2,gone3 cannot be reached, and 1 spare hosts are left"]
    done = launched(tmp_path, "gone1,here", ["gone4", "spare"])
    assert done.returncode == 0, done.stderr
    assert "gone1 cannot be reached: training continues on gone4,here, 1 spare hosts left" in done.stderr
    assert "gone4 cannot be reached: training continues on spare,here, 0 spare hosts left" in done.stderr
