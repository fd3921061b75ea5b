"""The ``slurm:`` section, usually set in a site profile."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from qwen_job.job.slurm_options import option_name
from qwen_job.job.types import Count, FreeText, OptionValue, Place, Positive, SlurmTime, Strict, Text

# GPU types as in gres.conf: the text between two colons.
_GPU_TYPE = re.compile(r"[^\s:,=()]+")


OptionName = Annotated[str, AfterValidator(option_name)]


class Slurm(Strict):
    """Slurm settings. Set any other option through ``sbatch`` and ``srun``, by its long name."""

    partition: Text | None = Field(None, description="Partition, or several with commas between; default: Slurm's")
    account: Text | None = Field(None, description="Account that the job is charged to")
    qos: Text | None = Field(None, description="Quality of service")
    constraint: Text | None = Field(None, description="Features that the nodes must have, e.g. nvlink&ib")
    reservation: Text | None = Field(None, description="Reservation to run in")
    time: SlurmTime | None = Field(
        None, description="Time limit with its unit: 2h30m, or in sbatch's format: 12:30:00, 1-12 (days-hours), 90:00"
    )
    gpu_request: Literal["gpus-per-node", "gres", "none"] = Field(
        "gpus-per-node", description="How this site requests GPUs; none on CPU clusters"
    )
    gpu_type: Text | None = Field(None, description="The site's name for the GPU, e.g. a100 for --gres=gpu:a100:8")
    exclusive: bool | None = Field(None, description="Use whole nodes; default: true for more than one node")
    memory: Text | None = Field(
        None, description="--mem, e.g. 400G or 0 (all); default: all on whole nodes, otherwise as planned"
    )
    cpus_per_task: Positive | None = Field(
        None,
        description="Default: cluster.cpus_per_gpu x gpus_per_node; without cpus_per_gpu, all CPUs on whole nodes, "
        "otherwise one per process and data loader",
    )
    log_dir: Place | None = Field(
        None, description="Folder for NAME-JOBID.out; default: the folder where sbatch was called"
    )
    modules: list[Text] = Field([], description="Modules to load, in order")
    setup: list[FreeText] = Field(
        [], description="Shell lines to run on every node before training, e.g. to activate a venv"
    )
    scratch: Place | None = Field(None, description="Node-local folder for temporary files and compiled kernels")
    python: Place = Field("python3", description="Python to use, in the container or on the nodes")
    spare_nodes: Count = Field(
        0,
        description="Nodes that the job requests besides cluster.nodes; one replaces a lost or unhealthy node without "
        "a requeue",
    )
    requeue: bool = Field(True, description="Requeue after preemption or a node failure, and before the time limit")
    chain: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="Instead of requeueing, submit N jobs in a row, each resuming from the previous one",
    )
    array_limit: Positive | None = Field(
        None, description="Maximum number of sweep runs at the same time; default: all"
    )
    preflight: bool = Field(True, description="Check every node before training; the next attempt excludes bad nodes")
    min_allreduce_gbs: float | None = Field(
        None,
        gt=0,
        description="Minimum all-reduce bus bandwidth between nodes in GB/s; the next attempt excludes slower nodes",
    )
    signal_seconds: Count | None = Field(
        None, description="Seconds before the time limit to start saving; default: planned"
    )
    sbatch: dict[OptionName, OptionValue] = Field(
        {}, description="Any sbatch option, e.g. {mail-type: END, exclude: n7}"
    )
    srun: dict[OptionName, OptionValue] = Field({}, description="Any srun option for the training step")

    @field_validator("gpu_type")
    @classmethod
    def _one_word(cls, value: str | None) -> str | None:
        if value is not None and not _GPU_TYPE.fullmatch(value):
            raise ValueError(f"{value!r} is not a GPU type: write only its name, e.g. a100; the number is planned")
        return value

    @field_validator("memory", mode="before")
    @classmethod
    def _number_is_text(cls, value: Any) -> Any:
        if re.fullmatch(r"0*[1-9]\d*", str(value)):
            raise ValueError(f"{value} has no unit, and sbatch would read megabytes: write {value}G or {value}M")
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("memory")
    @classmethod
    def _a_size(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"0+|\d+[KMGT]B?", value, re.IGNORECASE):
            raise ValueError(f"{value!r} is not a valid --mem: write 400G, 500000M, or 0 for all memory of a node")
        return value
