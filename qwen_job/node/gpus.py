"""Are these the GPUs that the plan counts on, and are they sound: number, type, ECC errors, Xid lines."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from qwen_job.node.driver import probe
from qwen_job.node.quick import Finding

GIB = 2**30
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
    count = len(probe().gpus)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = len([device for device in visible.split(",") if device.strip()])
    text = f"{count} GPUs visible, {wanted} wanted"
    return Finding("gpu count", "ok" if count >= wanted else "fault", text)


def gpu_type(planned: PlannedGpu) -> Finding:
    """Hold the GPUs' compute capability and memory against the plan's: less is a fault, more a warning."""
    memory = {int(index): float(size) * 2**20 for index, size in _query("memory.total") if _is_number(size)}
    less, more = [], []
    for gpu in probe().gpus:
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
    bad = [f"GPU {index} has {count}" for index, count in counts if count.isdigit() and int(count)]
    if bad:
        return Finding("ecc", "fault", f"uncorrected memory errors: {', '.join(bad)}; the node needs a reset")
    return Finding("ecc", "ok", "no uncorrected memory errors")


def xid_errors() -> Finding:
    """Look for Xid lines of the last hour in the kernel's log; most sites let only root read it, which is said."""
    try:
        done = subprocess.run(["dmesg"], capture_output=True, text=True, timeout=60, check=False, errors="replace")
        uptime = float(Path("/proc/uptime").read_text("ascii").split()[0])
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return Finding("xid", "warning", "the kernel's log cannot be read here: Xid errors were not looked for")
    if done.returncode:
        return Finding("xid", "warning", "dmesg is not permitted here: Xid errors were not looked for")
    return judge_xid(done.stdout, uptime)


def judge_xid(log: str, uptime: float) -> Finding:
    """Judge the kernel's log; its lines begin with seconds since the start, which was ``uptime`` seconds ago."""
    broken, other = [], []
    for match in filter(None, map(_XID.match, log.splitlines())):
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
