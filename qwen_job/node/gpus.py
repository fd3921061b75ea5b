"""Compare the node's GPUs with the plan, and check their health: count, type, ECC errors, Xid errors.

Unless a cgroup hides them, nvidia-smi lists every card of the node; only those in CUDA_VISIBLE_DEVICES are checked.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass

from qwen_job.node.driver import Driver, NodeGpu, probe
from qwen_job.node.quick_check import CheckResult
from qwen_job.text import GIB, duration

# nvidia-smi reports the memory of the card, the plan what CUDA leaves of it. A smaller card differs by far more.
_MEMORY_SHARE = 0.97
# Xid codes after which the GPU, its memory or its links need a reset or a repair (NVIDIA's "Xid Errors" guide).
_BROKEN = {
    48: "an uncorrectable memory error",
    62: "the power controller halted",
    64: "memory rows could not be remapped",
    74: "an NVLink error",
    79: "the GPU fell off the bus",
    95: "an uncontained memory error",
    119: "the GPU's system processor does not respond",
    120: "an error of the GPU's system processor",
    140: "an unrecovered memory error",
}
_XID = re.compile(r"^\[\s*(?P<seconds>\d+\.\d+)\].*NVRM: Xid \((?P<device>[^)]*)\): (?P<code>\d+)")
# Lines stay in the log after a reset, so older ones are only reported.
_RECENT_SECONDS = 3600


@dataclass(frozen=True)
class PlannedGpu:
    """The plan's GPU; ``capability`` as in 8.0, ``memory_bytes`` is 0 if unknown."""

    name: str
    capability: float
    memory_bytes: int


def gpu_checks(count: int, planned: PlannedGpu | None) -> list[CheckResult]:
    """Check this node's GPUs, of which the job needs ``count``. Requires a working driver (see quick_check.py)."""
    kind = [gpu_type(planned)] if planned is not None else []
    return [gpu_count(count), *kind, ecc_errors(), xid_errors()]


def gpu_count(wanted: int) -> CheckResult:
    """Compare the number of visible GPUs with the job's."""
    driver = probe()
    slices = os.environ.get("CUDA_VISIBLE_DEVICES", "").count("MIG-")
    count = 1 if slices else len(visible(driver))
    text = f"{count} GPUs visible, {wanted} needed"
    if slices and wanted > 1:
        return CheckResult(
            "gpu count", "fault", f"{text}: a process sees only one of {slices} MIG slices; use one per node"
        )
    if count < wanted and len(driver.gpus) != count:
        text += f"; the driver has {len(driver.gpus)}, CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}"
    return CheckResult("gpu count", "ok" if count >= wanted else "fault", text)


def visible(driver: Driver) -> list[NodeGpu]:
    """Return the cards in CUDA_VISIBLE_DEVICES as CUDA reads it: up to the first unknown one.

    If it names MIG slices, every card is returned, because their cards are not looked up.
    """
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    # libcuda has applied the variable itself, and numbers the remaining cards from 0.
    if names is None or driver.version is None or "MIG-" in names:
        return list(driver.gpus)
    uuids = {uuid: int(index) for index, uuid in _query("uuid")} if "GPU-" in names else {}
    cards = {gpu.index: gpu for gpu in driver.gpus}
    found = []
    for name in map(str.strip, names.split(",")):
        like = [index for uuid, index in uuids.items() if name and uuid.startswith(name)]
        index = int(name) if name.isdigit() else like[0] if len(like) == 1 else -1
        if index not in cards:
            break
        found.append(cards[index])
    return found


def gpu_type(planned: PlannedGpu) -> CheckResult:
    """Compare compute capability and memory with the plan: less is a fault, more is a warning."""
    memory = {int(index): float(size) * 2**20 for index, size in _query("memory.total") if _is_number(size)}
    less, more = [], []
    for gpu in visible(probe()):
        capability = float("{}.{}".format(*gpu.capability)) if gpu.capability else planned.capability
        size = memory.get(gpu.index, float(planned.memory_bytes))
        smaller = size < _MEMORY_SHARE * planned.memory_bytes
        text = f"GPU {gpu.index} is {gpu.name} (compute capability {capability}, {size / GIB:.0f} GiB)"
        if smaller or capability < planned.capability:
            less.append(text)
        elif capability > planned.capability:
            more.append(text)
    wanted = f"planned for {planned.name} (compute capability {planned.capability}"
    wanted += f", {planned.memory_bytes / GIB:.0f} GiB)" if planned.memory_bytes else ")"
    if less:
        fix = "request the planned type (slurm.gpu_type, slurm.constraint), or correct cluster.gpu and plan again"
        return CheckResult("gpu type", "fault", f"{', '.join(less)}; {wanted}: {fix}")
    if more:
        return CheckResult("gpu type", "warning", f"{', '.join(more)}; {wanted}: correct cluster.gpu for a better plan")
    return CheckResult("gpu type", "ok", wanted)


def ecc_errors() -> CheckResult:
    """Read the uncorrected ECC errors since the driver was loaded; warn if nvidia-smi does not report them."""
    counts = _query("ecc.errors.uncorrected.volatile.total")
    if not counts:
        return CheckResult("ecc", "warning", "nvidia-smi does not report ECC errors on this node")
    mine = {gpu.index for gpu in visible(probe())}
    bad = [f"GPU {index} has {count}" for index, count in counts if int(index) in mine and count.strip("0").isdigit()]
    if bad:
        return CheckResult("ecc", "fault", f"uncorrected memory errors: {', '.join(bad)}; the node needs a reset")
    return CheckResult("ecc", "ok", "no uncorrected memory errors")


def xid_errors() -> CheckResult:
    """Look for Xid errors of the last hour in the kernel log; warn if only root may read it."""
    for words in (["dmesg"], ["journalctl", "--dmesg", "--output=short-monotonic", "--no-pager", "--quiet"]):
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, errors="replace")
        except (OSError, subprocess.TimeoutExpired):
            continue
        if not done.returncode and done.stdout.strip():
            return judge_xid(done.stdout, time.monotonic(), _others())
    return CheckResult("xid", "warning", "Xid errors not checked: dmesg and journalctl are not readable")


def _others() -> set[str]:
    """Return the bus numbers of the node's other cards, as the kernel writes them: 0000:3b:00."""
    mine = {gpu.index for gpu in visible(probe())}
    # nvidia-smi writes 00000000:3B:00.0
    return {bus[-12:-2].lower() for index, bus in _query("pci.bus_id") if int(index) not in mine}


def judge_xid(log: str, uptime: float, others: Collection[str] = ()) -> CheckResult:
    """Judge the kernel log, whose lines begin with seconds since boot; the machine booted ``uptime`` seconds ago.

    Errors of the cards ``others`` do not concern this job. A card that fell off the bus is no longer listed there.
    """
    broken, other = [], []
    for match in filter(None, map(_XID.match, log.splitlines())):
        if any(bus in match["device"].lower() for bus in others):
            continue
        code, age = int(match["code"]), uptime - float(match["seconds"])
        text = f"Xid {code} of {match['device']} {duration(max(0.0, age))} ago"
        if code in _BROKEN and age <= _RECENT_SECONDS:
            broken.append(f"{text} ({_BROKEN[code]})")
        else:
            other.append(text)
    if broken:
        return CheckResult("xid", "fault", f"the kernel reports {'; '.join(broken[-3:])}; have the node checked")
    if other:
        return CheckResult("xid", "warning", f"{len(other)} Xid errors in the kernel log; the last: {other[-1]}")
    return CheckResult("xid", "ok", "no Xid errors in the kernel log")


def _query(field: str) -> list[tuple[str, str]]:
    """Return (index, value) of every GPU, empty if nvidia-smi does not report the field."""
    words = ["nvidia-smi", f"--query-gpu=index,{field}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
    return [(row[0], row[1]) for row in rows if len(row) == 2 and row[0].isdigit()] if not done.returncode else []


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
