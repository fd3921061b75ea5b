"""The checks of a node's GPUs, against an nvidia-smi and a dmesg that say what the test wants."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_job.node import gpus
from qwen_job.node.driver import Driver, NodeGpu
from qwen_job.node.gpus import PlannedGpu, ecc_errors, gpu_count, gpu_type, judge_xid, xid_errors

A100 = PlannedGpu("A100-80G", 8.0, 84_975_927_951)
LOG = """\
[    1.000000] Linux version 6.1.0
[ 9000.123456] NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
[ 9500.500000] NVRM: Xid (PCI:0000:5e:00): 31, pid=4711, name=python, Ch 00000008, intr 00000000. MMU Fault
"""


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the front of PATH, and two A100-80G as the driver tells of them."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cards = tuple(NodeGpu(index, "NVIDIA A100-SXM4-80GB", (8, 0)) for index in range(2))
    monkeypatch.setattr(gpus, "probe", lambda: Driver("580.65.06", None, cards))
    return tmp_path


def program(folder: Path, name: str, output: str, code: int = 0) -> None:
    """Put a program there that prints ``output``."""
    (folder / f"{name}.txt").write_text(output)
    (folder / name).write_text(f"#!/bin/sh\ncat '{folder}/{name}.txt'\nexit {code}\n")
    (folder / name).chmod(0o755)


def test_the_type_that_was_planned_for(node: Path) -> None:
    program(node, "nvidia-smi", "0, 81920\n1, 81920\n")
    assert gpu_type(A100).state == "ok"
    assert (gpu_count(2).state, gpu_count(3).state) == ("ok", "fault")


def test_a_smaller_card_of_the_same_name_names_the_gpu_and_the_fix(node: Path) -> None:
    program(node, "nvidia-smi", "0, 81920\n1, 40960\n")
    found = gpu_type(A100)
    assert found.state == "fault"
    assert found.message == (
        "GPU 1 is NVIDIA A100-SXM4-80GB (compute capability 8.0, 40 GiB); planned for A100-80G (compute capability 8.0,"
        " 79 GiB): request the planned type (slurm.gpu_type, slurm.constraint), or correct cluster.gpu and plan again"
    )


def test_an_older_generation_is_a_fault_and_a_newer_one_a_warning(node: Path) -> None:
    program(node, "nvidia-smi", "0, 81920\n1, 81920\n")
    assert gpu_type(PlannedGpu("H100-80G", 9.0, 0)).state == "fault"
    assert gpu_type(PlannedGpu("V100-32G", 7.0, 34_000_000_000)).state == "warning"


def test_a_card_that_does_not_tell_its_memory_is_judged_by_its_generation(node: Path) -> None:
    program(node, "nvidia-smi", "0, [N/A]\n1, [N/A]\n")
    assert gpu_type(A100).state == "ok"


def test_ecc_errors_name_the_gpu(node: Path) -> None:
    program(node, "nvidia-smi", "0, 0\n1, 3\n")
    assert ecc_errors().message == "uncorrected memory errors: GPU 1 has 3; the node needs a reset"
    program(node, "nvidia-smi", "0, [N/A]\n1, 0\n")
    assert ecc_errors().state == "ok"
    program(node, "nvidia-smi", "no such query\n", code=2)
    assert ecc_errors().state == "warning"


def test_a_broken_gpu_of_the_last_hour_is_a_fault_and_an_older_one_a_warning() -> None:
    now = judge_xid(LOG, uptime=9600.0)
    assert now.state == "fault" and "Xid 79 of PCI:0000:3b:00 10 min ago (the GPU fell off the bus)" in now.message
    later = judge_xid(LOG, uptime=90_000.0)
    assert later.state == "warning"
    assert later.message.startswith("2 Xid errors in the kernel log; the last: Xid 31")
    assert judge_xid(LOG.splitlines()[0], uptime=9600.0).state == "ok"


@pytest.mark.parametrize(("devices", "state"), [("0", "ok"), ("GPU-a", "ok"), ("1", "fault"), ("0,1", "fault")])
def test_only_the_job_s_own_cards_are_judged(
    node: Path, monkeypatch: pytest.MonkeyPatch, devices: str, state: str
) -> None:
    answers = {"uuid": "0, GPU-aa\n1, GPU-bb\n", "memory.total": "0, 81920\n1, 40960\n"}
    answers |= {"ecc.errors": "0, 0\n1, 10\n", "pci.bus_id": "0, 00000000:5E:00.0\n1, 00000000:3B:00.0\n"}
    for name, answer in answers.items():
        (node / name).write_text(answer)
    cases = "".join(f"*{name}*) cat '{node}/{name}' ;;\n" for name in answers)
    (node / "nvidia-smi").write_text(f'#!/bin/sh\ncase "$*" in\n{cases}esac\n')
    (node / "nvidia-smi").chmod(0o755)
    monkeypatch.setattr("time.monotonic", lambda: 9600.0)
    program(node, "dmesg", LOG.replace("Xid (PCI:0000:5e:00): 31", "Xid (PCI:0000:3b:00): 31"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    assert [found.state for found in (gpu_type(A100), ecc_errors(), xid_errors())] == [state] * 3
    assert gpu_count(2).state == ("ok" if devices == "0,1" else "fault")


@pytest.mark.parametrize(("devices", "count"), [("", 0), ("NoDevFiles", 0), ("1,7,0", 1), ("MIG-1,MIG-2,MIG-3", 1)])
@pytest.mark.usefixtures("node")
def test_gpus_are_counted_as_cuda_does(monkeypatch: pytest.MonkeyPatch, devices: str, count: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    assert gpu_count(4).message.startswith(f"{count} GPUs visible, 4 needed")


def test_a_card_that_fell_off_the_bus_is_nobody_else_s() -> None:
    assert judge_xid(LOG, 9600.0, {"0000:5e:00"}).state == "fault"
    assert judge_xid(LOG, 9600.0, {"0000:3b:00"}).state == "warning"


def test_the_journal_is_asked_where_dmesg_is_refused(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(node, "dmesg", "dmesg: read kernel buffer failed: Operation not permitted\n", code=1)
    program(node, "nvidia-smi", "")
    program(node, "journalctl", LOG.replace("] NVRM", "] gpu001 kernel: NVRM"))
    monkeypatch.setattr("time.monotonic", lambda: 9600.0)
    assert xid_errors().state == "fault"


def test_an_unreadable_kernel_log_is_a_warning(node: Path) -> None:
    program(node, "dmesg", "dmesg: read kernel buffer failed: Operation not permitted\n", code=1)
    program(node, "journalctl", "")
    assert xid_errors().message.startswith("Xid errors not checked")
    program(node, "dmesg", "[    1.000000] Linux version 6.1.0\n")
    assert xid_errors().state == "ok"
