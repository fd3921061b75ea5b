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


def test_a_smaller_card_of_the_same_name_names_gpu_and_way_out(node: Path) -> None:
    program(node, "nvidia-smi", "0, 81920\n1, 40960\n")
    found = gpu_type(A100)
    assert found.state == "fault"
    assert found.message == (
        "GPU 1 is NVIDIA A100-SXM4-80GB (compute capability 8.0, 40 GiB); planned for A100-80G (compute capability 8.0,"
        " 79 GiB): ask for that type (slurm.gpu_type, slurm.constraint), or correct cluster.gpu and plan again"
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


def test_a_broken_gpu_of_the_last_hour_is_a_fault_and_an_older_line_is_told() -> None:
    now = judge_xid(LOG, uptime=9600.0)
    assert now.state == "fault" and "Xid 79 of PCI:0000:3b:00 10 min ago (the GPU fell off the bus)" in now.message
    later = judge_xid(LOG, uptime=90_000.0)
    assert later.state == "warning" and later.message.startswith("2 Xid lines in the kernel's log, the last: Xid 31")
    assert judge_xid(LOG.splitlines()[0], uptime=9600.0).state == "ok"


def test_a_kernel_log_that_may_not_be_read_is_said(node: Path) -> None:
    program(node, "dmesg", "dmesg: read kernel buffer failed: Operation not permitted\n", code=1)
    assert xid_errors().message == "dmesg is not permitted here: Xid errors were not looked for"
    program(node, "dmesg", "[    1.000000] Linux version 6.1.0\n")
    assert xid_errors().state == "ok"
