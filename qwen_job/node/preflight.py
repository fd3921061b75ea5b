"""The checks of one node right before a job trains on it: what would otherwise end the job an hour later.

Each check is a :class:`Finding`. Faults of the node itself (GPUs, ECC, memory limits, clock, network) make the job try
again without that node; faults that every node would have (an output folder that is full, unwritable or not shared) end
it.
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

from qwen_job.node.gpus import PlannedGpu, gpu_checks
from qwen_job.node.network import Place, Verdict, check_network
from qwen_job.node.quick_check import SHARED_MEMORY, Finding, quick_check
from qwen_job.run.space import still_needed
from qwen_job.sockets import HOW_TO_NAME, UnknownName, leads_elsewhere, listen
from qwen_job.text import GIB, gib

# Clocks of a cluster follow NTP; more apart than this and timestamps, certificates and file ages go wrong.
CLOCK_SECONDS = 30
# Without a figure from the plan: room for logs and a small checkpoint.
DISK_BYTES = GIB
# A fault in one of these is the job's or the site's, not this node's.
NOT_THE_NODE = frozenset({"address", "output", "disk", "cache", "name", "memlock", "shm per gpu"})
# A fault in one of these is another node's.
OTHERS = frozenset({"network"})
INFINIBAND = Path("/sys/class/infiniband")


@dataclass(frozen=True)
class Expected:
    """What the job counts on: ``gpus`` of a node (0: on CPUs), its run's folder, the rendezvous at ``master``:``port``.

    ``token`` was written to ``run``/launch/token by the script that started the nodes; ``sent_at`` is its clock then,
    in unix seconds. ``gpu`` and ``fabric`` are the GPU and the interconnect of the plan, ``min_gbs`` is the least
    bandwidth between the nodes.
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


def preflight(expected: Expected) -> list[Finding]:
    """Look at this node; nothing is raised for a fault."""
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


def network(expected: Expected, master: str, port: int) -> list[Finding]:
    """Have all nodes add numbers up over TCP, and name the node that others cannot reach, or only slowly.

    With GPUs a floor is NCCL's to reach, so it is measured with torch.distributed; without a floor torch's start is
    saved.
    """
    attempt = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    place = Place(
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
        verdict = check_network(place)
    except UnknownName as error:
        return [Finding("address", "fault", f"{error}; {HOW_TO_NAME}")]
    except OSError as error:
        return [Finding("network", "fault", f"the first node cannot be reached at {master}:{port}: {error}")]
    if expected.rank == 0:
        _note_missing(expected, verdict)
    return [judge_network(verdict, place), *(clock(skew) for skew in verdict.skews[place.rank :][:1])]


def judge_network(verdict: Verdict, place: Place) -> Finding:
    """Say what the verdict means to this node: a fault of its own is called ``link``."""
    at_fault = ", ".join(verdict.names[rank] for rank in verdict.unhealthy)
    whose = f"; at fault: {at_fault}" if at_fault else "; no single node is at fault"
    check = "link" if place.rank in verdict.unhealthy else "network"
    if verdict.missing:
        who = ", ".join(verdict.names[rank] for rank in verdict.missing)
        return Finding(check, "fault", f"{who} did not come to the network test{whose}")
    if verdict.gbs is None:
        return Finding(check, "fault", f"network test: {verdict.trouble}{whose}")
    how = f"{verdict.size >> 20} MiB between {place.nodes} nodes over {verdict.over}"
    text = f"all-reduce of {how}: {verdict.gbs:.2f} GB/s"
    if verdict.gbs >= place.floor or (place.collective and verdict.over == "TCP"):
        return Finding("network", "ok", text, verdict.gbs)
    text += f", less than min_allreduce_gbs ({place.floor:g})"
    if at_fault:
        return Finding(check, "fault", f"{text}; the slow links are those of {at_fault}", verdict.gbs)
    return Finding("network", "warning", f"{text}; no single node is at fault", verdict.gbs)


def _note_missing(expected: Expected, verdict: Verdict) -> None:
    """Write down nodes that never came, for the script that requeues the job: they cannot say it themselves."""
    from qwen_job.hosts import expand_hosts

    try:
        names = expand_hosts([os.environ["SLURM_JOB_NODELIST"]])
        for rank in set(verdict.missing) & set(verdict.unhealthy):
            (expected.run / "launch" / f"unhealthy.{expected.token}.{rank}").write_text(f"{names[rank]}\n")
    except (KeyError, IndexError, ValueError, OSError):
        return  # no Slurm, or nowhere to write: the next try is made with the same nodes


def shared_memory_for(gpus: int) -> Finding:
    """Ask for 1 GiB of /dev/shm a GPU: NCCL's rings and the data workers' batches."""
    size = shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else 0
    text = f"{SHARED_MEMORY} holds {gib(size)} for {gpus or 'no'} GPUs"
    if gpus and size < gpus * GIB:
        way_out = "enlarge it (docker and podman: --ipc=host or --shm-size; Kubernetes: kubernetes.shm_size)"
        return Finding("shm per gpu", "fault", f"{text}; NCCL and data workers need 1 GiB each: {way_out}")
    return Finding("shm per gpu", "ok", text)


def output_folder(expected: Expected) -> list[Finding]:
    """Write, sync and remove a file in the run's folder, and look for the token that proves that it is shared."""
    trial = expected.run / "launch" / f".trial-{uuid.uuid4().hex}"
    try:
        trial.parent.mkdir(parents=True, exist_ok=True)
        with trial.open("wb") as stream:
            stream.write(b"x" * 4096)
            os.fsync(stream.fileno())
        trial.unlink()
    except OSError as error:
        return [Finding("output", "fault", f"output: {expected.run} cannot be written here: {error.strerror}")]
    if expected.token:
        try:
            same = (expected.run / "launch" / "token").read_text().strip() == expected.token
        except OSError:
            same = False
        if not same:
            text = f"output: {expected.run} is not the folder that the other nodes see; put it on shared storage"
            return [Finding("output", "fault", text)]
    return [Finding("output", "ok", f"{expected.run} is writable" + (" and shared" if expected.token else ""))]


def disk_space(expected: Expected) -> Finding:
    """Hold the free space of the run's folder against the plan, less what a resumed run holds there already."""
    try:
        free = shutil.disk_usage(expected.run).free
    except OSError as error:
        return Finding("disk", "fault", f"output: {expected.run}: {error.strerror}")
    needed = still_needed(expected.run, expected.disk_bytes)
    text = f"{gib(free)} free in {expected.run}"
    if free < needed:
        more = "" if needed == expected.disk_bytes else " beyond what the run holds there"
        fix = f"about {gib(needed)} are needed{more}; free some, or choose another output"
        return Finding("disk", "fault", f"output: {text}; {fix}")
    return Finding("disk", "ok", text)


def clock(skew: float) -> Finding:
    """Judge how far this node's clock is from the others', in seconds."""
    text = f"{skew:+.0f} s against the other nodes"
    return Finding("clock", "ok" if abs(skew) <= CLOCK_SECONDS else "fault", text)


def free_port(port: int) -> Finding:
    """Try to listen on the rendezvous port."""
    try:
        listen(port).close()
    except OSError as error:
        return Finding("port", "fault", f"port {port} of the rendezvous is taken ({error.strerror})")
    return Finding("port", "ok", f"port {port} is free")


def own_name() -> Finding:
    """Say what the node's own name leads to: where it is itself only, the trainer chooses Gloo's interface."""
    name, chosen = socket.gethostname(), os.environ.get("GLOO_SOCKET_IFNAME")
    if chosen:
        return Finding("name", "ok", f"{name} is not looked up: GLOO_SOCKET_IFNAME is {chosen}")
    if address := leads_elsewhere(name):
        return Finding("name", "ok", f"{name} is {address}")
    return Finding("name", "ok", f"{name} leads to this node only: Gloo takes the interface toward the first node")


def adapters() -> Finding:
    """List the InfiniBand, RoCE or EFA adapters with an active port."""
    active = []
    for adapter in sorted(INFINIBAND.iterdir()) if INFINIBAND.is_dir() else []:
        states = [path.read_text() for path in adapter.glob("ports/*/state")]
        if any("ACTIVE" in state for state in states):
            active.append(adapter.name)
    if not active:
        return Finding("hca", "fault", "no active InfiniBand, RoCE or EFA adapter is seen here")
    return Finding("hca", "ok", ", ".join(active))


def locked_memory() -> Finding:
    """Ask for an unlimited memlock limit, which RDMA needs to register its buffers."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Finding("memlock", "ok", "unlimited")
    return Finding("memlock", "fault", f"{soft >> 10} KiB may be locked; RDMA needs it unlimited (ulimit -l unlimited)")
