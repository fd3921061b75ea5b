"""The sections of a job: Model, Data, Cluster, Train, DeepSpeed, Container, Retry and Local.

Slurm, Kubernetes, the hostfile and the plan's constants have a module each; ``job.py`` joins them.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from qwen_job.facts import choices
from qwen_job.facts.data_names import is_name, parse
from qwen_job.facts.model_names import resolve_source
from qwen_job.job.places import as_list
from qwen_job.job.rope_scaling import RopeScaling
from qwen_job.job.types import (
    BelowOne,
    Count,
    DataPath,
    Fraction,
    FreeText,
    Interfaces,
    Place,
    Positive,
    Seconds,
    Strict,
    Text,
)
from qwen_job.limits import MAX_LENGTH, MAX_WEIGHT, MIN_LENGTH


def _some_or_unlimited(steps: int) -> int:
    if steps == 0 or steps < -1:
        raise ValueError(f"{steps} is not a number of steps: write 1 or more, or -1 to train by epochs")
    return steps


MaxSteps = Annotated[int, AfterValidator(_some_or_unlimited)]
Seed = Annotated[int, Field(ge=0, lt=choices.SEED_LIMIT)]
# The names that transformers 5 accepts; any other name would only fail after queueing.
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

    name: Text = Field(description="Model ID (Qwen/Qwen-1_8B-Chat), a folder, or the name of a known shape")
    source: Literal["auto", choices.Source] = Field(
        "auto",
        description="auto: a path is local, anything else comes from ModelScope; random: random weights",
    )
    revision: Text | None = Field(None, description="Branch, tag or commit on the hub")
    cache_dir: Text | None = Field(None, description="Folder for downloads and conversions, shared by all nodes")
    rope_scaling: RopeScaling | None = Field(
        None,
        description="Train and export with YaRN, for rows beyond the model's own length: a factor, or what Qwen's "
        "cards write into config.json",
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def resolved_source(self) -> str:
        """``source`` with ``auto`` resolved: a name that looks like a path is local."""
        return resolve_source(self.name, self.source)


class DataFile(Strict):
    """A file of conversations and its weight."""

    path: DataPath = Field(
        description="JSON, JSONL (also .gz, .zst) or Parquet: a path, hf:OWNER/NAME[:SPLIT], ms:OWNER/NAME[:SPLIT], or "
        "an https://, s3:// or oss:// address"
    )
    weight: Annotated[float, Field(gt=0, le=MAX_WEIGHT)] = Field(
        1.0, description="Times each conversation appears per epoch"
    )
    revision: Text | None = Field(
        None,
        description="Branch, tag or commit of an hf: or ms: data set; a run stays at the commit that it began with",
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _revision_of_a_hub(self) -> "DataFile":
        if self.revision and not (is_name(self.path) and parse(self.path).on_hub):
            raise ValueError("revision: only a data set of a hub (hf:, ms:) has one; remove it")
        return self


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


class Data(Strict):
    """The conversations. ``data: chats.json`` is short for ``data: {train: [chats.json]}``."""

    train: list[DataFile] = Field(min_length=1, description="Files to train on")
    eval: list[DataFile] = Field([], description="Files to evaluate on")
    eval_split: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Fraction of the training conversations to hold out if eval is empty"
    )
    format: choices.Format = Field("auto", description="auto detects the format by its keys")
    template: Text = Field(
        choices.TEMPLATE,
        description="Chat template: the model's own (auto; ChatML for models without one), chatml, or a Jinja file",
    )
    system_prompt: FreeText | None = Field(
        None, description="System prompt for conversations without one; default: the template's"
    )
    learn: choices.Learn = Field(
        "all", description="Answers to learn where the data does not say: all, or each conversation's last"
    )
    thinking: choices.Thinking = Field(
        "keep",
        description="The data's reasoning: keep trains it where the template has it, strip removes it, as_written also "
        "trains it as text where the template has no place for it",
    )
    empty_think: choices.EmptyThink = Field(
        "auto",
        description="Answers without reasoning on a model that thinks: learn, mask or omit the empty thought. auto "
        "masks it, so that the model still thinks when asked to",
    )
    several_thoughts: choices.SeveralThoughts = Field(
        "split",
        description="Conversations of which the template drops earlier reasoning: split makes a sample for each prompt "
        "that a server would build, join trains one sequence",
    )
    long_samples: choices.LongSamples = Field(
        "truncate",
        description="What to do with conversations over train.model_max_length; truncate keeps the answer",
    )
    packing: bool = Field(True, description="Pack several conversations into each row, separated by the attention mask")
    mask: choices.Mask = Field(
        "assistant",
        description="Tokens to train on: the assistant's text, or the same as Qwen's finetune.py (reference)",
    )
    turn_order: choices.TurnOrder = Field(
        "strict",
        description="Conversations whose turns do not alternate, or without an answer: strict rejects them, reference "
        "treats them as Qwen's finetune.py does, join merges turns so that they alternate",
    )
    ignore_keys: list[Text] = Field([], description="Keys of rows and turns to ignore")
    cache_dir: Text | None = Field(
        None,
        description="Folder for prepared data and downloads; default: the output folder and model.cache_dir",
    )
    num_workers: Positive | None = Field(
        None, description="Number of processes that prepare the data; default: all cores"
    )
    samples: Positive | None = Field(
        None, description="Number of conversations in train, for the plan; default: counted"
    )
    tokens_per_sample: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Average tokens per conversation, for the plan; default: estimated from the text"
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
    """A GPU that is not in qwen_job/facts/gpus, described by its figures."""

    name: Text = Field(description="Its name, as the plan shows it")
    memory_gib: Annotated[float, Field(gt=0, le=1e6)] = Field(description="Memory of one GPU, in GiB")
    compute_capability: Annotated[float, Field(gt=0, le=1000)] = Field(description="CUDA compute capability, e.g. 8.0")
    peak_tflops: dict[choices.Precision, float] = Field(
        {}, description="Dense TFLOP/s by precision; without it, no MFU"
    )
    memory_bandwidth_gbs: Annotated[float, Field(gt=0)] | None = Field(None, description="Memory bandwidth in GB/s")
    nvlink_gbs: Annotated[float, Field(gt=0)] | None = Field(None, description="GB/s, sum of both directions")
    pcie_gbs: Annotated[float, Field(gt=0)] | None = Field(None, description="GB/s, sum of both directions")


class Cluster(Strict):
    """The nodes. With ``gpu: CPU``, ``gpus_per_node`` is the number of processes."""

    gpu: Text | CustomGpu = Field(description="Name of a known GPU (A100-80G, V100-32G, CPU ...), or its figures")
    nodes: Positive = Field(1, description="Number of nodes")
    gpus_per_node: Positive = Field(1, description="GPUs (and processes) per node")
    cpus_per_gpu: Positive | None = Field(None, description="CPU cores per GPU")
    memory_gib: Annotated[float, Field(gt=0, le=1e7)] | None = Field(
        None, description="Host memory per node, for the plan"
    )
    interconnect: Literal["auto", choices.Interconnect] = Field(
        "auto", description="Network between nodes; sets the NCCL presets and the planned bandwidth"
    )
    network_gbs: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Bandwidth between two nodes in GB/s, for the plan"
    )
    storage_gbs: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Bandwidth of the shared storage for one job in GB/s, for the plan; default: 1"
    )
    price_per_gpu_hour: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Price of one GPU for one hour, in any currency, for the planned cost"
    )
    socket_interface: Interfaces | None = Field(
        None,
        description="Network interfaces for NCCL and Gloo, as in NCCL_SOCKET_IFNAME: eth0, =eth0, ^docker,lo",
    )
    ib_hca: Text | None = Field(None, description="InfiniBand adapters for NCCL, e.g. =mlx5_0,mlx5_1")

    @property
    def world_size(self) -> int:
        """Processes in the job, one per GPU."""
        return self.nodes * self.gpus_per_node


class Train(Strict):
    """Training settings, with the names of Hugging Face's TrainingArguments."""

    model_config = ConfigDict(extra="allow")

    model_max_length: Annotated[int, Field(ge=MIN_LENGTH)] = Field(MAX_LENGTH, description="Maximum tokens per row")
    num_train_epochs: Annotated[float, Field(gt=0, strict=False)] = Field(
        choices.EPOCHS, description="Number of passes over the data"
    )
    max_steps: MaxSteps = Field(-1, description="Number of optimizer steps; -1: use num_train_epochs")
    learning_rate: Annotated[float, Field(gt=0)] = Field(choices.LEARNING_RATE, description="Peak learning rate")
    global_batch_size: Positive | None = Field(None, description="Rows per optimizer step, over all GPUs")
    per_device_train_batch_size: Positive | None = Field(
        None, description="Rows per GPU and micro-batch; default: planned"
    )
    gradient_accumulation_steps: Positive | None = Field(
        None, description="Micro-batches per optimizer step; default: planned from global_batch_size"
    )
    bf16: bool | None = Field(None, description="Train in bf16; default: true from compute capability 8.0")
    fp16: bool | None = Field(None, description="Train in fp16; default: true on older GPUs")
    gradient_checkpointing: bool | None = Field(None, description="Recompute activations to save memory")
    activation_offloading: Literal["auto"] | bool = Field(
        "auto",
        description="Keep what gradient checkpointing saves in pinned host memory; auto: where a row does not fit "
        "otherwise, or much faster. The numbers stay the same, bit for bit",
    )
    tiled_mlp: Literal["auto"] | bool = Field(
        "auto",
        description="Compute feed-forward networks 4,096 tokens at a time, so that their wide values never exist for a "
        "whole row; exact. auto: where a row does not fit otherwise, or much faster. Not for mixtures of experts",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        choices.WEIGHT_DECAY, description="Weight decay, except for norms and biases"
    )
    adam_beta1: BelowOne = Field(choices.ADAM_BETA1, description="Decay of AdamW's first moment")
    adam_beta2: BelowOne = Field(choices.ADAM_BETA2, description="Decay of AdamW's second moment")
    adam_epsilon: Annotated[float, Field(gt=0)] = Field(choices.ADAM_EPSILON, description="AdamW's epsilon")
    max_grad_norm: Annotated[float, Field(ge=0)] = Field(
        choices.MAX_GRAD_NORM, description="Clip gradients to this norm; 0 does not clip"
    )
    lr_scheduler_type: Scheduler = Field(
        choices.SCHEDULER, description="How the learning rate changes after the warmup"
    )
    warmup_ratio: Fraction = Field(choices.WARMUP_RATIO, description="Fraction of all steps used for warmup")
    logging_steps: Positive = Field(1, description="Steps between two lines of the trackers (report_to)")
    eval_steps: Positive | None = Field(None, description="Steps between evaluations; default: save_steps")
    save_steps: Positive = Field(choices.SAVE_STEPS, description="Steps between checkpoints")
    save_total_limit: Positive = Field(choices.SAVE_TOTAL_LIMIT, description="Number of checkpoints to keep")
    memory_save_steps: Literal["auto"] | Count = Field(
        "auto",
        description="Steps between states kept in host memory, from which a restart on the same nodes resumes; auto: "
        "as often as costs 1% of the time, where they fit; 0: never",
    )
    dataloader_num_workers: Count = Field(choices.DATALOADER_WORKERS, description="Processes per rank that read data")
    report_to: list[Reporter] = Field(
        [choices.REPORT_TO], description="Experiment trackers; metrics.jsonl is always written"
    )
    early_stopping_patience: Positive | None = Field(
        None, description="Stop after this many evaluations without a better loss"
    )
    load_best_model_at_end: bool = Field(False, description="Export the checkpoint with the best evaluation")
    seed: Seed = Field(choices.SEED, description="Seed of the order of the data, dropout and new weights")
    attention: Literal["auto", choices.Attention] = Field("auto", description="Attention kernel")
    sequence_parallel_size: Literal["auto"] | Positive = Field(
        "auto",
        description="GPUs of a node that share each row (Ulysses), for rows that are too long for one; auto: 1 where "
        "rows fit",
    )
    fused_loss: Literal["auto", choices.FusedLoss] = Field(
        "auto", description="Cross-entropy that never materializes the full logits"
    )
    torch_compile: choices.TorchCompile = Field(
        "auto",
        description="Compile the layers (17% more tokens/s on an H200); auto: from compute capability 8.0, where the "
        "node has a C compiler",
    )
    router_aux_loss_coef: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="Weight of the loss that balances the experts of a mixture, exact over all tokens of a step; "
        "default: the model's own, which is 0 for Qwen's. Costs a second forward pass where there are several "
        "micro-batches",
    )
    expert_parallel_size: Literal["auto"] | Positive = Field(
        "auto",
        description="GPUs that split the experts of a mixture's layers and exchange tokens, so that none gathers them; "
        "must divide the experts and the GPUs; 1: none; auto: planned",
    )
    export: choices.Export = Field(
        choices.EXPORT,
        description="What model/ holds if training started from a vision-language folder (Qwen3.5 to 3.8): the text "
        "model alone, or a copy of that folder with its text weights replaced",
    )
    on_nan: choices.OnNan = Field("stop", description="What to do if the loss is not finite")
    loss_spike_factor: Annotated[float, Field(gt=1)] | None = Field(
        choices.LOSS_SPIKE_FACTOR,
        description="Stop if the loss stays above this multiple of its usual value, and a nat above it; null: never",
    )
    longest_first: bool | None = Field(
        None,
        description="Train the longest rows in the first step, so that a lack of memory shows in the first minute; "
        "default: where model_max_length is over 32,768",
    )
    skip_rows: list[Count] = Field([], description="Prepared rows to skip, by the numbers in the error message")
    resume: choices.Resume = Field(
        "auto",
        description="extend: train a complete run further with its optimizer state, after raising max_steps or "
        "num_train_epochs; changed: resume although the data or the base model has changed",
    )
    hang_seconds: Annotated[int, Field(ge=30)] = Field(
        choices.HANG_SECONDS,
        description="Most seconds without progress before the run stops and names the stuck rank; a rank "
        "that takes steps gets ten times its longest wait, at least 2 minutes",
    )

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_report(cls, value: Any) -> Any:
        if isinstance(value, str) and "," in value:
            raise ValueError(f"{value!r} is one text; write a list: {as_list(value)}")
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
        """The other TrainingArguments that the user set, by name."""
        return dict(self.model_extra or {})

    @property
    def begins_with_longest(self) -> bool:
        """Whether the first step trains the longest rows: ``longest_first``, or its default."""
        default = self.model_max_length > choices.LONGEST_FIRST_ABOVE
        return default if self.longest_first is None else self.longest_first

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by name, set or default. Unlike ``model_dump``, this builds no serializer."""
        return dict(self)


class DeepSpeed(Strict):
    """DeepSpeed settings; ``config`` overrides the planned deepspeed.json."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = Field(
        None, description="ZeRO stage, 0 to 3; default: planned"
    )
    offload_optimizer: bool | None = Field(None, description="Keep optimizer states in host memory; default: planned")
    config: dict[str, Any] = Field({}, description="Any DeepSpeed setting, e.g. {zero_optimization: {...}}")


class Container(Strict):
    """How the image runs on Slurm nodes (Kubernetes runs it directly)."""

    runtime: Literal["none", "pyxis", "apptainer", "podman", "docker", "charliecloud"] = Field(
        "none", description="none: use Python on the nodes, from a venv or modules"
    )
    image: Place | None = Field(
        None, description="Overrides the job's image: a .sqsh or .sif file, a folder, or a registry image"
    )
    mounts: list[Place] = Field(
        [], description="SOURCE[:TARGET[:ro]]; data, model and output are mounted automatically"
    )
    mount_home: bool = Field(False, description="Mount the home directory")
    options: list[Text] = Field([], description="Additional options for the runtime, one per item")


class Retry(Strict):
    """What happens after a retryable failure (exit codes from 128)."""

    max_retries: Count = Field(10, description="Maximum number of times the job requeues itself")
    max_without_progress: Positive = Field(
        3, description="Maximum number of attempts in a row without a newer checkpoint"
    )
    in_place: Count = Field(
        choices.IN_PLACE,
        description="Maximum number of restarts in place (in the same allocation, pods or ssh sessions, within "
        "seconds) in a row without a newer checkpoint, before the job is requeued; 0: none",
    )
    grace: Seconds = Field(choices.GRACE_SECONDS, description="Time to allow for saving a checkpoint")


class Local(Strict):
    """Settings for running on this machine."""

    python: Place = Field(
        "python3", description="Python with the training stack; submit's default is the one that runs qwen-job"
    )
