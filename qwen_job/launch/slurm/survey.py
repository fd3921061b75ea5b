"""Survey a Slurm cluster from a login node: nodes, partitions, settings and container tools.

``sinfo --json`` has two shapes: a list of nodes (Slurm 21.08 and 22.05), and from 23.02 on, records that each group
nodes of one partition, with numbers as ``{"set": true, "infinite": false, "number": 7}``. Partitions and settings are
read from scontrol's ``Name=value`` and ``Name = value`` lines, which are the same in all versions.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_job.errors import ClusterRefused, EnvironmentFault
from qwen_job.hosts import expand_hosts
from qwen_job.job.slurm_time import slurm_seconds
from qwen_job.launch.slurm.user_environment import clusters, environment
from qwen_job.text import visible

_UNREACHABLE = r"unable to contact slurm|configuration source|process configuration|connection refused|dns_srv"
_REASON_LENGTH = 200
_GPU = re.compile(r"(?:^|,)gpu(?::(?P<type>[^:,()]+))?:(?P<count>\d+)(?![^(]*\))")
_DOWN = ("down", "drain", "fail", "maint", "not_responding", "powered_down", "unknown", "inval")
# Container program -> container.runtime; empty for those that we cannot use (enroot needs pyxis).
RUNTIMES = {
    "apptainer": "apptainer",
    "singularity": "",
    "podman": "podman",
    "docker": "docker",
    "ch-run": "charliecloud",
    "enroot": "",
}
INFINIBAND = Path("/sys/class/infiniband")


@dataclass(frozen=True)
class Node:
    """A node: ``gpus`` maps type to count (empty string: no type), memory and local disk are in MiB."""

    name: str
    partitions: frozenset[str]
    gpus: dict[str, int]
    cpus: int
    memory_mib: int
    disk_mib: int
    features: tuple[str, ...]
    usable: bool


@dataclass(frozen=True)
class Partition:
    """A partition; ``fields`` come from scontrol show partition."""

    name: str
    fields: dict[str, str]

    @property
    def max_seconds(self) -> int | None:
        """The longest time that a job may request; None without a limit."""
        return slurm_seconds(self.fields.get("MaxTime", ""))

    @property
    def is_up(self) -> bool:
        """Whether jobs can start in it."""
        return self.fields.get("State", "UP") == "UP"


@dataclass(frozen=True)
class Survey:
    """The result; ``runtimes`` and ``adapters`` (InfiniBand) are those of this machine, not of the nodes."""

    nodes: tuple[Node, ...]
    partitions: dict[str, Partition]
    config: dict[str, str]
    pyxis: bool
    runtimes: tuple[str, ...]
    adapters: tuple[str, ...]
    accounts: tuple[str, ...]


def survey() -> Survey:
    """Survey the cluster with Slurm's own tools.

    Raises:
        EnvironmentFault: the tools are missing, or the controller does not answer.
    """
    here = clusters()
    return Survey(
        nodes=tuple(nodes_of(read_json(ask("sinfo", "--json", cluster=here)))),
        partitions=partitions_of(ask("scontrol", "show", "partition", "--oneliner", cluster=here)),
        config=config_of(ask("scontrol", "show", "config", cluster=here)),
        pyxis="--container-image" in _try("srun", "--help"),
        runtimes=tuple(name for name in RUNTIMES if shutil.which(name)),
        adapters=tuple(sorted(path.name for path in INFINIBAND.iterdir())) if INFINIBAND.is_dir() else (),
        accounts=_accounts(),
    )


def ask(*words: str, cluster: str = "") -> str:
    """Run one of Slurm's tools and return its output; ``cluster`` selects one of several.

    Raises:
        EnvironmentFault: the tool is missing or does not answer.
        ClusterRefused: the tool failed, with its message.
    """
    words = (words[0], f"--clusters={cluster}", *words[1:]) if cluster else words
    try:
        done = _run(words, 60)
    except FileNotFoundError:
        raise EnvironmentFault(f"{words[0]}: not on this machine; run this on a login node of the cluster") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"{words[0]}: no answer within a minute; is slurmctld up?") from None
    if done.returncode != 0:
        said = reason_in(done.stderr)
        if "--json" in words and re.search(r"unrecognized|invalid|unknown", done.stderr):
            raise EnvironmentFault(f"{words[0]} --json: not supported by this Slurm ({said}); 21.08 or newer is needed")
        if is_unreachable(done.stderr):
            raise EnvironmentFault(
                f"{words[0]} cannot reach a cluster: {said}; is slurmctld up, and is this a login node?"
            )
        raise ClusterRefused(f"{' '.join(words)}: {said}")
    return done.stdout


def reason_in(output: str) -> str:
    """Return the line of a tool's error messages that gives the reason: the fatal one, or the last error, or the first.

    The lines before it describe attempts, and those after an unknown option are its usage.
    """
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    for kind in ("fatal: ", "error: "):
        if found := [line.partition(kind)[2] for line in lines if kind in line]:
            return visible(found[-1], _REASON_LENGTH)
    return visible(lines[0], _REASON_LENGTH) if lines else "no message"


def is_unreachable(said: str) -> bool:
    """Tell whether an error of one of Slurm's tools means that no controller answered."""
    return re.search(_UNREACHABLE, said, re.IGNORECASE) is not None


def _run(words: tuple[str, ...], seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=seconds, env=environment()
    )


def _try(*words: str) -> str:
    """Return a tool's output, or nothing if it is missing or fails."""
    try:
        done = _run(words, 20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _accounts() -> tuple[str, ...]:
    words = ("sacctmgr", "--noheader", "--parsable2", "show", "user", "withassoc", "format=account", "where")
    user = _try("id", "-un").strip()
    lines = _try(*words, f"name={user}").splitlines() if user else []
    return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))


def by_cluster(text: str) -> list[tuple[str, str]]:
    """Split output into (cluster, JSON); with --clusters, a line ``CLUSTER: NAME`` precedes each answer."""
    parts = re.split(r"^CLUSTER: *(\S+) *$", text, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True)) or [("", text)]


def read_json(text: str) -> dict[str, Any]:
    """Parse the output of ``sinfo --json``.

    Raises:
        EnvironmentFault: it is not JSON.
    """
    try:
        value = json.loads(by_cluster(text)[0][1])
    except ValueError as error:
        raise EnvironmentFault(f"sinfo --json: unexpected output ({error})") from None
    return value if isinstance(value, dict) else {}


def nodes_of(answer: dict[str, Any]) -> list[Node]:
    """Return the nodes from either shape of ``sinfo --json``.

    Raises:
        EnvironmentFault: the output has another shape.
    """
    try:
        if isinstance(answer.get("nodes"), list):
            return [_node(entry) for entry in answer["nodes"]]
        return _grouped(answer["sinfo"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise EnvironmentFault(f"sinfo --json: unexpected output, in neither known shape ({what})") from None


def _node(entry: dict[str, Any]) -> Node:
    """Read one node of the older shape."""
    return Node(
        name=str(entry["name"]),
        partitions=frozenset(entry.get("partitions") or ()),
        gpus=gpus_of(entry.get("gres") or ""),
        cpus=number(entry.get("cpus")),
        memory_mib=number(entry.get("real_memory")),
        disk_mib=number(entry.get("temporary_disk")),
        features=_features(entry.get("features")),
        usable=_usable([entry.get("state"), *(entry.get("state_flags") or [])]),
    )


def _grouped(entries: list[dict[str, Any]]) -> list[Node]:
    """Read the newer shape, which lists a node once for each of its partitions."""
    found: dict[str, Node] = {}
    for entry in entries:
        states = entry["node"]["state"]
        for name in expand_hosts(entry["nodes"]["nodes"]):
            before = found[name].partitions if name in found else frozenset()
            found[name] = Node(
                name=name,
                partitions=before | {str(entry["partition"]["name"])},
                gpus=gpus_of(entry["gres"]["total"]),
                cpus=number(entry["cpus"]["maximum"]),
                memory_mib=number(entry["memory"]["maximum"]),
                disk_mib=number(entry.get("disk", {}).get("maximum")),
                features=_features(entry["features"]["total"]),
                usable=_usable(states if isinstance(states, list) else [states]),
            )
    return list(found.values())


def gpus_of(gres: str) -> dict[str, int]:
    """Read ``gpu:a100:8(S:0-1),nvme:1`` as type -> count; repeated types are added up."""
    found: dict[str, int] = {}
    for item in _GPU.finditer(gres):
        kind = item["type"] or ""
        found[kind] = found.get(kind, 0) + int(item["count"])
    return found


def number(value: Any) -> int:
    """Read a number of either shape; 0 if it is unset or infinite."""
    if isinstance(value, dict):
        value = value.get("number") if value.get("set", True) and not value.get("infinite") else 0
    return int(value or 0)


def _features(value: Any) -> tuple[str, ...]:
    words = value if isinstance(value, list) else str(value or "").split(",")
    return tuple(str(word) for word in words if word)


def _usable(states: list[Any]) -> bool:
    return not any(str(state).lower().startswith(_DOWN) for state in states if state)


def partitions_of(text: str) -> dict[str, Partition]:
    """Read ``scontrol show partition --oneliner``."""
    lines = (dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines())
    return {fields["PartitionName"]: Partition(fields["PartitionName"], fields) for fields in lines if fields}


def config_of(text: str) -> dict[str, str]:
    """Read ``scontrol show config``."""
    return {name: value.strip() for name, value in re.findall(r"^(\S+)\s*=(.*)$", text, re.MULTILINE)}
