"""Check a node right before a job trains on it, to catch what would fail the job an hour later.

Each check gives a :class:`CheckResult`. After a fault of the node itself (GPUs, ECC, memory limits, clock, network) the
job is retried without that node; a fault that every node would have (an output folder that is full, read-only or not
shared) is final.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from qwen_job.hosts import expand_hosts
from qwen_job.node.gpus import PlannedGpu, gpu_checks
from qwen_job.node.network import Member, Verdict, check_network
from qwen_job.node.quick_check import SHARED_MEMORY, CheckResult, quick_check
from qwen_job.run.folder import RunFolder
from qwen_job.run.space import still_needed
from qwen_job.sockets import HOW_TO_NAME, UnknownName, leads_elsewhere, listen
from qwen_job.text import GIB, gib

# Clocks of a cluster follow NTP; with a larger difference, timestamps, certificates and file ages are wrong.
CLOCK_SECONDS = 30
# Room for logs and a small checkpoint, if the plan gives no figure.
DISK_BYTES = GIB
# Checks that fail because of the job or the site, not of this node.
NOT_THE_NODE = frozenset({"address", "output", "disk", "cache", "name", "memlock", "shm per gpu"})
# Checks that fail because of another node.
OTHERS = frozenset({"network"})
INFINIBAND = Path("/sys/class/infiniband")


@dataclass(frozen=True)
class Expected:
    """What the job expects: ``gpus`` per node (0 on CPUs), the run folder, the rendezvous at ``master``:``port``.

    The script that started the nodes wrote ``token`` to ``run``/launch/token at ``sent_at`` (its clock, unix seconds).
    ``gpu`` and ``fabric`` are the planned GPU and interconnect, ``min_gbs`` is the minimum bandwidth between nodes.
    """

    gpus: int
    run: Path
    port: int | None = None
    token: str = ""
    sent_at: float | None = None
    nodes: int = 1
    fabric: str = "auto"
    disk_bytes: int = DISK_BYTES
    rank: int = 0
    master: str = ""
    min_gbs: float = 0.0
    gpu: PlannedGpu | None = None


def preflight(expected: Expected) -> list[CheckResult]:
    """Check this node; a fault is returned, not raised."""
    found = quick_check("cuda" if expected.gpus else "cpu")
    if expected.gpus and not any(f.check == "gpu" and f.state == "fault" for f in found):
        found += gpu_checks(expected.gpus, expected.gpu)
    found += [shared_memory_for(expected.gpus), *output_folder(expected), disk_space(expected)]
    if expected.sent_at is not None and not expected.master:
        found.append(clock(time.time() - expected.sent_at))
    if expected.port is not None and expected.rank == 0:
        found.append(free_port(expected.port))
    if expected.nodes > 1:
        found.append(own_name())
        if expected.gpus and expected.fabric in ("infiniband", "roce", "efa"):
            found += [adapters(), locked_memory()]
        if expected.master and expected.port is not None and not any(one.state == "fault" for one in found):
            found += network(expected, expected.master, expected.port)
    return found


def network(expected: Expected, master: str, port: int) -> list[CheckResult]:
    """Run an all-reduce between all nodes over TCP, and name any node that is unreachable or slow.

    On GPUs a minimum bandwidth applies to NCCL, so it is measured with torch.distributed. Without a minimum, torch is
    not started.
    """
    attempt = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    member = Member(
        expected.rank,
        expected.nodes,
        master,
        port,
        expected.token,
        expected.min_gbs,
        attempt,
        collective=expected.gpus > 0,
    )
    try:
        verdict = check_network(member)
    except UnknownName as error:
        return [CheckResult("address", "fault", f"{error}; {HOW_TO_NAME}")]
    except OSError as error:
        return [CheckResult("network", "fault", f"the first node cannot be reached at {master}:{port}: {error}")]
    if expected.rank == 0:
        _note_missing(expected, verdict)
    return [judge_network(verdict, member), *(clock(skew) for skew in verdict.skews[member.rank :][:1])]


def judge_network(verdict: Verdict, member: Member) -> CheckResult:
    """Return what the verdict means for this node: its own fault is called ``link``."""
    at_fault = ", ".join(verdict.names[rank] for rank in verdict.unhealthy)
    whose = f"; at fault: {at_fault}" if at_fault else "; no single node is at fault"
    check = "link" if member.rank in verdict.unhealthy else "network"
    if verdict.missing:
        who = ", ".join(verdict.names[rank] for rank in verdict.missing)
        return CheckResult(check, "fault", f"{who} did not take part in the network test{whose}")
    if verdict.gbs is None:
        return CheckResult(check, "fault", f"network test: {verdict.trouble}{whose}")
    how = f"{verdict.size >> 20} MiB between {member.nodes} nodes over {verdict.over}"
    text = f"all-reduce of {how}: {verdict.gbs:.2f} GB/s"
    if verdict.gbs >= member.floor or (member.collective and verdict.over == "TCP"):
        return CheckResult("network", "ok", text, verdict.gbs)
    text += f", less than min_allreduce_gbs ({member.floor:g})"
    if at_fault:
        return CheckResult(check, "fault", f"{text}; slow links: {at_fault}", verdict.gbs)
    return CheckResult("network", "warning", f"{text}; no single node is at fault", verdict.gbs)


def _note_missing(expected: Expected, verdict: Verdict) -> None:
    """Record nodes that did not take part, for the script that requeues the job."""
    try:
        # With spare nodes, the job has more of them than its step.
        names = expand_hosts([os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_JOB_NODELIST"]])
        for rank in set(verdict.missing) & set(verdict.unhealthy):
            RunFolder(expected.run).unhealthy(expected.token, rank).write_text(f"{names[rank]}\n")
    except (KeyError, IndexError, ValueError, OSError):
        return  # without Slurm, or on read-only storage, the next attempt uses the same nodes


def shared_memory_for(gpus: int) -> CheckResult:
    """Require 1 GiB of /dev/shm per GPU, for NCCL's rings and the data workers' batches."""
    size = shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else 0
    text = f"{SHARED_MEMORY} holds {gib(size)} for {gpus or 'no'} GPUs"
    if gpus and size < gpus * GIB:
        fix = "enlarge it (docker and podman: --ipc=host or --shm-size; Kubernetes: kubernetes.shm_size)"
        return CheckResult("shm per gpu", "fault", f"{text}; NCCL and data workers need 1 GiB per GPU: {fix}")
    return CheckResult("shm per gpu", "ok", text)


def output_folder(expected: Expected) -> list[CheckResult]:
    """Write, sync and remove a file in the run folder, and read the token that proves that the folder is shared."""
    trial = RunFolder(expected.run).launch / f".trial-{uuid.uuid4().hex}"
    try:
        trial.parent.mkdir(parents=True, exist_ok=True)
        with trial.open("wb") as stream:
            stream.write(b"x" * 4096)
            os.fsync(stream.fileno())
        trial.unlink()
    except OSError as error:
        return [
            CheckResult("output", "fault", f"output: {expected.run} cannot be written on this node: {error.strerror}")
        ]
    if expected.token:
        try:
            same = RunFolder(expected.run).token.read_text().strip() == expected.token
        except OSError:
            same = False
        if not same:
            text = f"output: {expected.run} is a different folder on the other nodes; put it on shared storage"
            return [CheckResult("output", "fault", text)]
    return [CheckResult("output", "ok", f"{expected.run} is writable" + (" and shared" if expected.token else ""))]


def disk_space(expected: Expected) -> CheckResult:
    """Compare the free space with the plan, less what a resumed run has already written."""
    try:
        free = shutil.disk_usage(expected.run).free
    except OSError as error:
        return CheckResult("disk", "fault", f"output: {expected.run}: {error.strerror}")
    needed = still_needed(expected.run, expected.disk_bytes)
    text = f"{gib(free)} free in {expected.run}"
    if free < needed:
        more = "" if needed == expected.disk_bytes else " in addition to what the run has written"
        fix = f"the run needs about {gib(needed)}{more}; free some space, or choose another output"
        return CheckResult("disk", "fault", f"output: {text}; {fix}")
    return CheckResult("disk", "ok", text)


def clock(skew: float) -> CheckResult:
    """Compare this node's clock with the others', given the difference in seconds."""
    text = f"{skew:+.0f} s from the other nodes"
    return CheckResult("clock", "ok" if abs(skew) <= CLOCK_SECONDS else "fault", text)


def free_port(port: int) -> CheckResult:
    """Try to listen on the rendezvous port."""
    try:
        listen(port).close()
    except OSError as error:
        return CheckResult("port", "fault", f"the rendezvous port {port} is in use ({error.strerror})")
    return CheckResult("port", "ok", f"port {port} is free")


def own_name() -> CheckResult:
    """Report what the node's own name resolves to; for a loopback address, the trainer chooses Gloo's interface."""
    name, chosen = socket.gethostname(), os.environ.get("GLOO_SOCKET_IFNAME")
    if chosen:
        return CheckResult("name", "ok", f"{name} is not resolved: GLOO_SOCKET_IFNAME is {chosen}")
    if address := leads_elsewhere(name):
        return CheckResult("name", "ok", f"{name} is {address}")
    return CheckResult(
        "name", "ok", f"{name} resolves to a loopback address: Gloo uses the interface toward the first node"
    )


def adapters() -> CheckResult:
    """List the InfiniBand, RoCE or EFA adapters with an active port."""
    active = []
    for adapter in sorted(INFINIBAND.iterdir()) if INFINIBAND.is_dir() else []:
        states = [path.read_text() for path in adapter.glob("ports/*/state")]
        if any("ACTIVE" in state for state in states):
            active.append(adapter.name)
    if not active:
        return CheckResult("hca", "fault", "no active InfiniBand, RoCE or EFA adapter on this node")
    return CheckResult("hca", "ok", ", ".join(active))


def locked_memory() -> CheckResult:
    """Require an unlimited memlock limit, which RDMA needs to register its buffers."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return CheckResult("memlock", "ok", "unlimited")
    return CheckResult("memlock", "fault", f"the limit is {soft >> 10} KiB; RDMA needs ulimit -l unlimited")
