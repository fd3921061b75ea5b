"""The checks before training, against this machine's own folders, ports and clock."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_job.node.preflight import Expected, clock, disk_space, free_port, output_folder, shared_memory_for
from qwen_job.run.space import held_by, still_needed
from tests.support import optional


def states(run: Path, token: str = "") -> list[str]:
    return [finding.state for finding in output_folder(Expected(0, run, token=token))]


def test_an_output_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    assert states(tmp_path) == ["ok"]
    assert [path.name for path in tmp_path.rglob("*")] == ["launch"]


def test_an_output_folder_that_cannot_be_written_names_the_field() -> None:
    (finding,) = output_folder(Expected(0, Path("/proc/nowhere")))
    assert finding.state == "fault" and finding.message.startswith("output: /proc/nowhere cannot be written")


def test_a_folder_that_is_not_shared_holds_another_token(tmp_path: Path) -> None:
    assert states(tmp_path, "7-0") == ["fault"]
    (tmp_path / "launch" / "token").write_text("7-0\n")
    assert states(tmp_path, "7-0") == ["ok"]
    assert states(tmp_path, "7-1") == ["fault"]


def test_disk_space_is_held_against_the_plan(tmp_path: Path) -> None:
    assert disk_space(Expected(0, tmp_path, disk_bytes=1)).state == "ok"
    too_much = disk_space(Expected(0, tmp_path, disk_bytes=2**60))
    assert too_much.state == "fault"
    assert "needs about 1073741824.0 GiB" in too_much.message


SMALL_DISK = """
mount -t tmpfs -o size=4m small "$1" || exit 77
mkdir -p "$1/run/checkpoints/step-10" "$1/run/checkpoints/step-20" "$1/run/prepared"
head -c 1200000 /dev/zero > "$1/run/checkpoints/step-10/state"
head -c 1200000 /dev/zero > "$1/run/checkpoints/step-20/state"
exec "$2" -m qwen_job node check --run "$1/run" --disk-bytes "$3" --json
"""


@pytest.mark.parametrize(("planned", "state"), [(3_600_000, "ok"), (4_400_000, "fault")])
def test_what_a_resumed_run_holds_counts_as_its_own_on_a_small_disk(tmp_path: Path, planned: int, state: str) -> None:
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SMALL_DISK, "sh"]
    done = subprocess.run(
        [*command, str(tmp_path), sys.executable, str(planned)], capture_output=True, text=True, check=False
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        optional.skip("root", "file systems cannot be mounted here")
    findings = {one["check"]: one for one in json.loads(done.stdout)["findings"]}
    assert findings["disk"]["state"] == state, findings["disk"]
    assert done.returncode == (0 if state == "ok" else 5)


def test_one_more_checkpoint_must_always_fit(tmp_path: Path) -> None:
    for name, size in (("step-4", 500), ("step-8", 600), (".step-12.partial", 200), (".universal-step-8", 50)):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "state").write_bytes(b"x" * size)
    assert held_by(tmp_path) == (1350, 600, 200)
    assert [still_needed(tmp_path, planned) for planned in (2000, 1800, 100)] == [650, 450, 400]
    assert still_needed(tmp_path / "none", 2000) == 2000


def test_a_clock_that_is_off_is_a_fault() -> None:
    assert clock(2).state == clock(-2).state == "ok"
    assert clock(3600).state == clock(-3600).state == "fault"


def test_a_port_that_is_taken_is_a_fault() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port).state == "fault"
    assert free_port(port).state == "ok"


def test_shared_memory_is_asked_for_by_the_gpu() -> None:
    assert shared_memory_for(0).state == "ok"
    assert shared_memory_for(10**6).state == "fault"


def check(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qwen_job", "node", "check", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_every_node_would_have_is_final_and_a_fault_of_the_node_is_tried_again(tmp_path: Path) -> None:
    run = str(tmp_path)
    assert check("--run", run).returncode == 0
    not_shared = check("--run", run, "--token", "1-0")
    assert not_shared.returncode == 5 and "put it on shared storage" in not_shared.stderr
    wrong_clock = check("--run", run, "--sent-at", "1000")
    assert wrong_clock.returncode == 163 and wrong_clock.stderr.startswith(f"error: {socket.gethostname()}: ")
    assert check("--quick", "--run", run).returncode == 2
