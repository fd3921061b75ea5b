"""The ``slurm:`` section: what a site profile usually holds."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from qwen_job.job.slurm_options import option_name
from qwen_job.job.types import Count, FreeText, OptionValue, Positive, SlurmTime, Strict, Text

# GPU types as in gres.conf: what stands between two colons.
_GPU_TYPE = re.compile(r"[^\s:,=()]+")


OptionName = Annotated[str, AfterValidator(option_name)]


class Slurm(Strict):
    """Slurm's settings. Options that are not here go into ``sbatch`` and ``srun`` by their long names."""

    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    reservation: Text | None = None
    time: SlurmTime | None = Field(
        None, description="Time limit: 2h30m, seconds, or as sbatch reads it: 12:30:00, 1-12 (days-hours), 90:00"
    )
    gpu_request: Literal["gpus-per-node", "gres", "none"] = Field(
        "gpus-per-node", description="How this site asks for GPUs; none on CPU clusters"
    )
    gpu_type: Text | None = Field(None, description="The site's name of the GPU, e.g. a100, for --gres=gpu:a100:8")
    exclusive: bool | None = Field(None, description="Whole nodes; default: on when the job takes more than one")
    memory: Text | None = Field(
        None, description="--mem, e.g. 0 (all of it) or 400G; default: all of a whole node, else what the plan needs"
    )
    cpus_per_task: Positive | None = Field(
        None,
        description="cluster.cpus_per_gpu x gpus_per_node; else all of a whole node, or one a process and loader",
    )
    log_dir: Text | None = Field(None, description="Folder for NAME-JOBID.out; default: where sbatch was called")
    modules: list[Text] = Field([], description="Modules to load, in order")
    setup: list[FreeText] = Field(
        [], description="Shell lines run on every node before training, e.g. activating a venv"
    )
    scratch: Text | None = Field(None, description="A node-local folder for temporary files and compiled kernels")
    python: Text = Field("python3", description="The Python inside the container or on the nodes")
    requeue: bool = Field(True, description="Requeue after preemption, node failure and before the time limit")
    chain: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="Instead of requeueing: so many jobs in a row, each going on where the last one stopped",
    )
    array_limit: Positive | None = Field(None, description="Runs of a sweep at the same time; default: all")
    preflight: bool = Field(True, description="Check every node before training; a bad one is left out of the next try")
    min_allreduce_gbs: float | None = Field(
        None,
        gt=0,
        description="GB/s (bus bandwidth) of an all-reduce between nodes; a slower node is left out of the next try",
    )
    signal_seconds: Count | None = Field(None, description="Save so long before the time limit; default: planned")
    sbatch: dict[OptionName, OptionValue] = Field(
        {}, description="Any sbatch option, e.g. {mail-type: END, exclude: n7}"
    )
    srun: dict[OptionName, OptionValue] = Field({}, description="Any srun option of the training step")

    @field_validator("gpu_type")
    @classmethod
    def _one_word(cls, value: str | None) -> str | None:
        if value is not None and not _GPU_TYPE.fullmatch(value):
            raise ValueError(f"{value!r} is not a GPU's type: write its name alone, as in a100; the number is planned")
        return value

    @field_validator("memory", mode="before")
    @classmethod
    def _number_is_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("memory")
    @classmethod
    def _a_size(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\d+([KMGT]B?)?", value, re.IGNORECASE):
            raise ValueError(f"{value!r} is not what --mem takes: write 400G, 500000 (MB), or 0 for all of a node's")
        return value
