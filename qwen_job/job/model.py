"""The sections of a job: Model, Data, Cluster, Train, DeepSpeed, Container, Retry, Evaluate and Local.

Slurm, Kubernetes, the hostfile and the plan's constants have a module each; ``job.py`` joins them.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from qwen_job.chatml import SYSTEM_PROMPT
from qwen_job.facts.model_names import resolve_source
from qwen_job.job.types import (
    BelowOne,
    Count,
    Fraction,
    FreeText,
    Interfaces,
    Positive,
    Seconds,
    SlurmTime,
    Strict,
    Text,
)
from qwen_job.limits import MAX_LENGTH, MAX_WEIGHT, MIN_LENGTH


def _some_or_unlimited(steps: int) -> int:
    if steps == 0 or steps < -1:
        raise ValueError(f"{steps} is no number of steps: write 1 or more, or -1 to train by epochs")
    return steps


MaxSteps = Annotated[int, AfterValidator(_some_or_unlimited)]
# numpy's generator takes 32 bits.
Seed = Annotated[int, Field(ge=0, lt=2**32)]
# The names that transformers 5 knows. A name that it refuses would cost a place in the queue.
Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
]
Reporter = Literal[
    "tensorboard",
    "wandb",
    "swanlab",
    "mlflow",
    "trackio",
    "comet_ml",
    "clearml",
    "neptune",
    "dvclive",
    "azure_ml",
    "codecarbon",
    "dagshub",
    "flyte",
    "kubeflow",
    "all",
    "none",
]


class Model(Strict):
    """The model to start from. ``model: Qwen/Qwen-1_8B-Chat`` is short for ``model: {name: ...}``."""

    name: Text = Field(description="A hub id (Qwen/Qwen-1_8B-Chat), a folder, or a known shape's name")
    source: Literal["auto", "modelscope", "huggingface", "local", "random"] = Field(
        "auto",
        description="auto: a path is local, everything else comes from ModelScope; random: new weights",
    )
    revision: Text | None = Field(None, description="A branch, tag or commit of the hub")
    cache_dir: Text | None = Field(None, description="Where downloads and conversions are kept, shared by all nodes")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def resolved_source(self) -> str:
        """``source`` with ``auto`` decided: a name that starts as a path does is local."""
        return resolve_source(self.name, self.source)


class DataFile(Strict):
    """One file of conversations and how often it counts."""

    path: Text = Field(description="JSON, JSONL (also .gz, .zst) or Parquet")
    weight: Annotated[float, Field(gt=0, le=MAX_WEIGHT)] = Field(
        1.0, description="2 shows every conversation twice an epoch"
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


class Data(Strict):
    """The conversations. ``data: chats.json`` is short for ``data: {train: [chats.json]}``."""

    train: list[DataFile] = Field(min_length=1, description="Files to train on")
    eval: list[DataFile] = Field([], description="Files to evaluate on")
    eval_split: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of the training conversations held out when eval is empty"
    )
    format: Literal["auto", "reference", "sharegpt", "messages", "alpaca", "query_response"] = Field(
        "auto", description="auto tells the formats apart by their keys"
    )
    system_prompt: FreeText = Field(SYSTEM_PROMPT, description="For conversations without their own")
    long_samples: Literal["truncate", "drop", "split"] = Field(
        "truncate",
        description="What becomes of conversations over train.model_max_length; truncate keeps the answer",
    )
    packing: bool = Field(True, description="Fill each row with several conversations, kept apart by attention")
    mask: Literal["assistant", "reference"] = Field(
        "assistant",
        description="What is learnt: the assistant's text, or what the reference finetune.py learns",
    )
    turn_order: Literal["strict", "reference", "join"] = Field(
        "strict",
        description="Conversations in which user and assistant do not take turns, or without an answer: strict refuses "
        "them, reference takes them as the reference finetune.py does, join makes turns that alternate of them",
    )
    ignore_keys: list[Text] = Field([], description="Keys of rows and turns to train without, whatever they hold")
    cache_dir: Text | None = Field(None, description="Where prepared data is kept; default: inside the output folder")
    num_workers: Positive | None = Field(None, description="Processes that prepare the data; default: all cores")
    samples: Positive | None = Field(None, description="Conversations in train, for the plan; default: counted")
    tokens_per_sample: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Tokens of a conversation on average, for the plan; default: estimated from the text"
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"train": value} if isinstance(value, (str, list)) else value

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _one_file(cls, value: Any) -> Any:
        return _as_list(value)


class CustomGpu(Strict):
    """A GPU that qwen_job/facts/gpus does not know, by its numbers."""

    name: Text
    memory_gib: Annotated[float, Field(gt=0, le=1e6)]
    compute_capability: Annotated[float, Field(gt=0, le=1000)]
    peak_tflops: dict[Literal["bf16", "fp16", "fp32"], float] = Field({}, description="Dense TFLOP/s; none: no MFU")
    memory_bandwidth_gbs: Annotated[float, Field(gt=0)] | None = None
    nvlink_gbs: Annotated[float, Field(gt=0)] | None = Field(None, description="GB/s in both directions together")
    pcie_gbs: Annotated[float, Field(gt=0)] | None = Field(None, description="GB/s in both directions together")


class Cluster(Strict):
    """The machines. ``gpu: CPU`` trains without GPUs; ``gpus_per_node`` is then the number of processes."""

    gpu: Text | CustomGpu = Field(description="A known GPU (A100-80G, V100-32G, CPU ...) or its numbers")
    nodes: Positive = Field(1, description="Machines")
    gpus_per_node: Positive = Field(1, description="GPUs, and so processes, on each machine")
    cpus_per_gpu: Positive | None = Field(None, description="CPU cores for each GPU's process")
    memory_gib: Annotated[float, Field(gt=0, le=1e7)] | None = Field(
        None, description="Host memory of a node, for the plan"
    )
    interconnect: Literal["auto", "infiniband", "roce", "efa", "ethernet"] = Field(
        "auto", description="The network between nodes: chooses the NCCL presets and the plan's bandwidth"
    )
    network_gbs: Annotated[float, Field(gt=0)] | None = Field(None, description="GB/s between two nodes, for the plan")
    storage_gbs: Annotated[float, Field(gt=0)] | None = Field(
        None, description="GB/s that one job writes to output and reads of its data, for the plan; default: 1"
    )
    price_per_gpu_hour: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Money for one GPU for one hour, in any currency, for the plan's cost"
    )
    socket_interface: Interfaces | None = Field(
        None,
        description="Network interfaces for NCCL and Gloo, written as NCCL_SOCKET_IFNAME is: eth0, =eth0, ^docker,lo",
    )
    ib_hca: Text | None = Field(None, description="InfiniBand adapters for NCCL, e.g. =mlx5_0,mlx5_1")

    @property
    def world_size(self) -> int:
        """Processes in the job, one per GPU."""
        return self.nodes * self.gpus_per_node


class Train(Strict):
    """How to train, by the names of Hugging Face's TrainingArguments."""

    model_config = ConfigDict(extra="allow")

    model_max_length: Annotated[int, Field(ge=MIN_LENGTH)] = Field(MAX_LENGTH, description="Tokens in a row")
    num_train_epochs: Annotated[float, Field(gt=0, strict=False)] = Field(5.0, description="Passes over the data")
    max_steps: MaxSteps = Field(-1, description="Stop after so many steps; -1: by epochs")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-5, description="Peak learning rate")
    global_batch_size: Positive | None = Field(None, description="Rows in one optimizer step over all GPUs")
    per_device_train_batch_size: Positive | None = Field(None, description="Rows at once on a GPU; default: planned")
    gradient_accumulation_steps: Positive | None = Field(None, description="Default: planned from global_batch_size")
    bf16: bool | None = Field(None, description="Default: true from compute capability 8.0")
    fp16: bool | None = Field(None, description="Default: true on older GPUs")
    gradient_checkpointing: bool | None = Field(None, description="Recompute activations to save memory")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.1, description="Not for norms and biases")
    adam_beta1: BelowOne = 0.9
    adam_beta2: BelowOne = 0.95
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    lr_scheduler_type: Scheduler = Field("cosine", description="How the learning rate falls after the warmup")
    warmup_ratio: Fraction = Field(0.01, description="Share of all steps")
    logging_steps: Positive = 1
    eval_steps: Positive | None = Field(None, description="Steps between evaluations; default: as save_steps")
    save_steps: Positive = Field(500, description="Steps between checkpoints")
    save_total_limit: Positive = Field(2, description="Checkpoints kept")
    dataloader_num_workers: Count = 1
    report_to: list[Reporter] = Field(
        ["tensorboard"], description="tensorboard, wandb, swanlab, mlflow; metrics.jsonl always"
    )
    early_stopping_patience: Positive | None = Field(None, description="Evaluations without a better loss")
    load_best_model_at_end: bool = False
    seed: Seed = 42
    attention: Literal["auto", "varlen", "sdpa", "eager"] = Field("auto", description="Attention kernel")
    fused_loss: Literal["auto", "torch", "chunked", "liger", "none"] = Field(
        "auto", description="Cross-entropy that never holds all logits"
    )
    torch_compile: bool = Field(
        False, description="Compile the layers: 17% more tokens/s, measured on an H200; the image needs a C compiler"
    )
    on_nan: Literal["stop", "skip"] = Field("stop", description="What a loss that is not a number does")
    loss_spike_factor: Annotated[float, Field(gt=1)] | None = Field(
        10.0,
        description="Stop when the loss is so many times the usual one, and a nat above it, and stays; null: never",
    )
    skip_rows: list[Count] = Field([], description="Prepared rows, as a message numbers them, to leave untrained")
    resume: Literal["auto", "extend", "changed"] = Field(
        "auto",
        description="extend: train a complete run on, with its optimizer, when max_steps or num_train_epochs is "
        "raised; changed: resume although the data or the base model differ",
    )
    hang_seconds: Annotated[int, Field(ge=30)] = Field(900, description="No step for so long: name the stuck rank, end")

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_report(cls, value: Any) -> Any:
        return ([] if value == "none" else [value]) if isinstance(value, str) else value

    @field_validator(
        "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "warmup_ratio",
        mode="before",
    )  # fmt: skip
    @classmethod
    def _integers_are_numbers(cls, value: Any) -> Any:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @property
    def extra(self) -> dict[str, Any]:
        """The other TrainingArguments that were written, by name."""
        return dict(self.model_extra or {})

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by name, written or default. Unlike ``model_dump``, it builds no serializer for this alone."""
        return dict(self)


class DeepSpeed(Strict):
    """What DeepSpeed does; ``config`` is laid over the planned deepspeed.json."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = Field(None, description="0-3; default: planned from memory")
    offload_optimizer: bool | None = Field(None, description="Optimizer on the host; default: planned from memory")
    config: dict[str, Any] = Field({}, description="Any DeepSpeed setting, e.g. {zero_optimization: {...}}")


class Container(Strict):
    """How the image runs on Slurm nodes (Kubernetes has its own way)."""

    runtime: Literal["none", "pyxis", "apptainer", "podman", "docker", "charliecloud"] = Field(
        "none", description="none: the cluster's own Python, from a venv or modules"
    )
    image: Text | None = Field(
        None, description="Overrides the job's image: a .sqsh, a .sif, a folder, or a registry's"
    )
    mounts: list[Text] = Field([], description="SOURCE[:TARGET[:ro]]; data, model and output are mounted by themselves")
    mount_home: bool = Field(False, description="Mount the home directory")
    options: list[Text] = Field([], description="More options for the runtime, one an item")


class Retry(Strict):
    """What happens after a failure that is worth another try (exit codes from 128)."""

    max_retries: Count = Field(10, description="How often the job requeues itself in all")
    max_without_progress: Positive = Field(3, description="Tries in a row that bring no newer checkpoint")
    grace: Seconds = Field(120, description="Time that saving a checkpoint may take")


class Evaluate(Strict):
    """A job on one GPU after the training: held-out loss, perplexity and sample answers. ``{}`` is enough."""

    data: Text | None = Field(None, description="Conversations that were not trained on; default: data.eval's first")
    samples: Count = Field(5, description="Questions to answer")
    max_new_tokens: Positive = Field(128, description="Longest answer")
    before: bool = Field(True, description="Measure the model before the training, too")
    time: SlurmTime | None = Field(None, description="Its time limit; default: the partition's own")


class Local(Strict):
    """Running on this machine."""

    python: Text = Field("python3", description="The Python that has the training stack")
