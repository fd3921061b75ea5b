"""Are these the GPUs that the plan counts on, and are they sound: number, type, ECC errors, Xid lines.

nvidia-smi tells of every card of the node where no cgroup hides the others; those in CUDA_VISIBLE_DEVICES are judged.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass

from qwen_job.node.driver import Driver, NodeGpu, probe
from qwen_job.node.quick_check import Finding
from qwen_job.text import GIB

# nvidia-smi tells the memory of the card, the plan what CUDA leaves of it; a smaller card differs by far more.
_MEMORY_SHARE = 0.97
# Xid codes after which the GPU, its memory or its links need a reset or a repair (NVIDIA's "Xid Errors" guide).
_BROKEN = {
    48: "an uncorrectable memory error",
    62: "the power controller halted",
    64: "memory rows could not be remapped",
    74: "an NVLink error",
    79: "the GPU fell off the bus",
    95: "an uncontained memory error",
    119: "the GPU's system processor does not answer",
    120: "an error of the GPU's system processor",
    140: "an unrecovered memory error",
}
_XID = re.compile(r"^\[\s*(?P<seconds>\d+\.\d+)\].*NVRM: Xid \((?P<device>[^)]*)\): (?P<code>\d+)")
# A reset since then leaves its lines in the log: what is older is only told.
_RECENT_SECONDS = 3600


@dataclass(frozen=True)
class PlannedGpu:
    """The plan's GPU; ``capability`` as in 8.0, ``memory_bytes`` 0 where it is not known."""

    name: str
    capability: float
    memory_bytes: int


def gpu_checks(count: int, planned: PlannedGpu | None) -> list[Finding]:
    """Look at this node's GPUs, of which ``count`` are wanted; the driver answers (see quick.py)."""
    kind = [gpu_type(planned)] if planned is not None else []
    return [gpu_count(count), *kind, ecc_errors(), xid_errors()]


def gpu_count(wanted: int) -> Finding:
    """Hold the number of visible GPUs against the job's."""
    driver = probe()
    slices = os.environ.get("CUDA_VISIBLE_DEVICES", "").count("MIG-")
    count = 1 if slices else len(visible(driver))
    text = f"{count} GPUs visible, {wanted} wanted"
    if slices and wanted > 1:
        return Finding("gpu count", "fault", f"{text}: of {slices} MIG slices a process sees one; take one a node")
    if count < wanted and len(driver.gpus) != count:
        text += f"; the driver has {len(driver.gpus)}, CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}"
    return Finding("gpu count", "ok" if count >= wanted else "fault", text)


def visible(driver: Driver) -> list[NodeGpu]:
    """Return the cards that CUDA_VISIBLE_DEVICES leaves to this job, as CUDA reads it: up to the first unknown one.

    Where it names slices of cards (MIG), every card is returned: which of them they belong to is not asked.
    """
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    # libcuda has read the variable itself, and counts what it left from 0.
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


def gpu_type(planned: PlannedGpu) -> Finding:
    """Hold the GPUs' compute capability and memory against the plan's: less is a fault, more a warning."""
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
        way_out = "ask for that type (slurm.gpu_type, slurm.constraint), or correct cluster.gpu and plan again"
        return Finding("gpu type", "fault", f"{', '.join(less)}; {wanted}: {way_out}")
    if more:
        return Finding("gpu type", "warning", f"{', '.join(more)}; {wanted}: correct cluster.gpu for a better plan")
    return Finding("gpu type", "ok", wanted)


def ecc_errors() -> Finding:
    """Ask nvidia-smi for uncorrected ECC errors since the driver was loaded; where it cannot tell, that is said."""
    counts = _query("ecc.errors.uncorrected.volatile.total")
    if not counts:
        return Finding("ecc", "warning", "nvidia-smi cannot be asked for ECC errors here")
    mine = {gpu.index for gpu in visible(probe())}
    bad = [f"GPU {index} has {count}" for index, count in counts if int(index) in mine and count.strip("0").isdigit()]
    if bad:
        return Finding("ecc", "fault", f"uncorrected memory errors: {', '.join(bad)}; the node needs a reset")
    return Finding("ecc", "ok", "no uncorrected memory errors")


def xid_errors() -> Finding:
    """Look for Xid lines of the last hour in the kernel's log; most sites let only root read it, which is said."""
    for words in (["dmesg"], ["journalctl", "--dmesg", "--output=short-monotonic", "--no-pager", "--quiet"]):
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, errors="replace")
        except (OSError, subprocess.TimeoutExpired):
            continue
        if not done.returncode and done.stdout.strip():
            return judge_xid(done.stdout, time.monotonic(), _others())
    return Finding("xid", "warning", "neither dmesg nor journalctl may be read here: Xid errors were not looked for")


def _others() -> set[str]:
    """Return the bus numbers of the cards that are here but not this job's, as the kernel writes them: 0000:3b:00."""
    mine = {gpu.index for gpu in visible(probe())}
    # nvidia-smi writes 00000000:3B:00.0
    return {bus[-12:-2].lower() for index, bus in _query("pci.bus_id") if int(index) not in mine}


def judge_xid(log: str, uptime: float, others: Collection[str] = ()) -> Finding:
    """Judge the kernel's log; its lines begin with seconds since the start, which was ``uptime`` seconds ago.

    What it says of the cards ``others`` is not this job's. A card that fell off the bus is no longer among those.
    """
    broken, other = [], []
    for match in filter(None, map(_XID.match, log.splitlines())):
        if any(bus in match["device"].lower() for bus in others):
            continue
        code, age = int(match["code"]), uptime - float(match["seconds"])
        text = f"Xid {code} of {match['device']} {max(0.0, age) / 60:.0f} min ago"
        if code in _BROKEN and age <= _RECENT_SECONDS:
            broken.append(f"{text} ({_BROKEN[code]})")
        else:
            other.append(text)
    if broken:
        return Finding("xid", "fault", f"the kernel reports {'; '.join(broken[-3:])}: the node needs a look")
    if other:
        return Finding("xid", "warning", f"{len(other)} Xid lines in the kernel's log, the last: {other[-1]}")
    return Finding("xid", "ok", "no Xid lines in the kernel's log")


def _query(field: str) -> list[tuple[str, str]]:
    """Return (index, value) of every GPU; nothing where nvidia-smi cannot tell."""
    words = ["nvidia-smi", f"--query-gpu=index,{field}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
    return [(row[0], row[1]) for row in rows if len(row) == 2 and row[0].isdigit()] if not done.returncode else []


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
