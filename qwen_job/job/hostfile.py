"""The ``hostfile:`` section: hosts reached over SSH."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from qwen_job.hosts import check_total, expand_hosts, is_host
from qwen_job.job.types import Place, Strict, Text

# The nodes of the current allocation; with :JOBID, the nodes of a running job.
ALLOCATION = "slurm"


def is_elsewhere(entry: str) -> bool:
    """Return whether an entry names a file or an allocation instead of hosts."""
    return entry == ALLOCATION or entry.startswith(f"{ALLOCATION}:") or "/" in entry


def _expandable(pattern: str) -> str:
    if not is_elsewhere(pattern):
        expand_hosts([pattern])
    return pattern


def _range(pattern: str) -> str:
    if is_elsewhere(pattern):
        raise ValueError(f"{pattern[:80]!r} is not a host: write names or ranges, e.g. gpu[05-06]")
    expand_hosts([pattern])
    return pattern


def _host(text: str) -> str:
    if not is_host(text):
        raise ValueError(f"{text[:80]!r} is not an address: write a host name or an IP address, e.g. 10.0.0.7")
    return text


class Hostfile(Strict):
    """Hosts by name or range; their number must match cluster.nodes."""

    hosts: list[Annotated[Text, AfterValidator(_expandable)]] = Field(
        [],
        description="Names and ranges: gpu01, gpu[001-128], 10.0.0.7; a file with hosts: ./hosts.txt; slurm: the nodes "
        "of the current allocation; slurm:JOBID: the nodes of a running job",
    )
    spare_hosts: list[Annotated[Text, AfterValidator(_range)]] = Field(
        [], description="Names and ranges of more hosts: the first takes the place of a host that fails, and so on"
    )
    launcher: Literal["torchrun", "deepspeed", "pdsh"] = Field(
        "torchrun",
        description="torchrun: one ssh per node; deepspeed: --no_ssh on each node; pdsh: DeepSpeed's launcher",
    )
    master_addr: Annotated[Text, AfterValidator(_host)] | None = Field(
        None, description="Address of the first host as the others reach it; default: its name in hosts"
    )
    port: Annotated[int, Field(ge=1024, le=65535)] = Field(29500, description="Rendezvous port on the first host")
    python: Place = Field("python3", description="Python with the training stack, on every host")
    preflight: bool = Field(True, description="Check every host before training")
    ssh_options: list[Text] = Field([], description="Additional ssh options, one per item, e.g. -p, '2222'")

    @field_validator("hosts", "spare_hosts", mode="before")
    @classmethod
    def _one_host(cls, value: Any) -> Any:
        value = [value] if isinstance(value, str) else value
        if isinstance(value, list):
            check_total([entry for entry in value if isinstance(entry, str) and not is_elsewhere(entry)])
        return value
