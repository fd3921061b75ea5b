"""The sections of train.yaml: model, data, training, stop, guards, plan.

The plan builds them from a checked job; a reader of train.yaml validates them, once. No postponed annotations here:
pydantic would evaluate each of them whenever a command starts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from qwen_job.errors import DataError, ModelError, QwenJobError
from qwen_job.facts import choices
from qwen_job.facts.data_names import is_name, parse
from qwen_job.facts.model_names import clean_name
from qwen_job.limits import MAX_LENGTH, MAX_WEIGHT, MIN_LENGTH


class Section(BaseModel):
    """Base of everything in train.yaml: unknown keys are errors; the validator is built at first use."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False, defer_build=True)


class Fixed(Section):
    """An immutable section."""

    model_config = ConfigDict(frozen=True)


_Kind = TypeVar("_Kind", bound=Fixed)


class RopeScaling(Fixed):
    """YaRN: positions reach ``factor`` times ``original_max_position_embeddings``, None for the model's own."""

    rope_type: Literal["yarn"] = "yarn"
    factor: float = Field(gt=1)
    original_max_position_embeddings: int | None = Field(default=None, ge=1)


class ModelSpec(Fixed):
    """One model: ``name`` is a hub id, a folder (local) or a name in qwen_job/facts/models/ (random)."""

    name: str = Field(min_length=1)
    source: choices.Source
    revision: str | None = None
    cache_dir: Path | None = None
    rope_scaling: RopeScaling | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in ("name", "source")):
            return value
        try:
            return {**value, "name": clean_name(value["name"], value["source"])}
        except ValueError as error:
            raise _refusal(cls, "name", str(error)) from None

    @classmethod
    def read(cls, section: Mapping[str, Any]) -> "ModelSpec":
        """Read a separate ``model`` section.

        Raises:
            ModelError: naming each field with a wrong value.
        """
        return _checked(cls, section, "model", ModelError)


class DataFile(Fixed):
    """One file of conversations. ``weight`` 2.0 uses each sample twice per epoch, 0.5 every other sample.

    Or, in place of a ``path``, a ``source``: a name of facts/data_names, whose files data/sources fetches.
    ``revision``: of a hub's data set, as the user wrote it.
    """

    path: Path = Path()
    weight: float = Field(default=1.0, gt=0, le=MAX_WEIGHT)
    source: str | None = None
    revision: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        entry = {"path": value} if isinstance(value, (str, Path)) else value
        if not isinstance(entry, dict):
            return entry
        if isinstance(path := entry.get("path"), str) and is_name(path):
            entry = {**{key: item for key, item in entry.items() if key != "path"}, "source": path}
        text = None
        if isinstance(source := entry.get("source"), str):
            text = _name_fault(source)
        elif entry.get("path") is None:
            text = "is missing"
        if text:
            raise _refusal(cls, "path", text)
        return entry


def _refusal(section: type[Fixed], field: str, text: str) -> ValidationError:
    """Return what a validator of a whole section raises to blame one field of it."""
    fault = PydanticCustomError("name", "{text}", {"text": text})
    return ValidationError.from_exception_data(section.__name__, [{"type": fault, "loc": (field,), "input": None}])


def _name_fault(source: str) -> str:
    try:
        parse(source)
    except ValueError as error:
        return str(error)
    return ""


class DataSpec(Fixed):
    """Every setting that affects which tokens are trained. ``max_length``: tokens per packed row.

    ``template`` is auto (the model's own), chatml or a file; ``system_prompt`` None leaves it to the template.
    ``eval_split`` holds out that fraction of the training samples when ``eval`` is empty.
    """

    train: tuple[DataFile, ...] = Field(min_length=1)
    eval: tuple[DataFile, ...] = ()
    eval_split: float = Field(default=0.0, ge=0, lt=1)
    format: choices.Format = "auto"
    template: str = Field(default=choices.TEMPLATE, min_length=1)
    system_prompt: str | None = None
    learn: choices.Learn = "all"
    thinking: choices.Thinking = "keep"
    empty_think: choices.EmptyThink = "auto"
    several_thoughts: choices.SeveralThoughts = "split"
    long_samples: choices.LongSamples = "truncate"
    packing: bool = True
    mask: choices.Mask = "assistant"
    turn_order: choices.TurnOrder = "strict"
    ignore_keys: tuple[str, ...] = ()
    cache_dir: Path | None = None
    num_workers: int | None = Field(default=None, ge=1)
    max_length: int = Field(default=MAX_LENGTH, ge=MIN_LENGTH)

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, value: Any) -> Any:
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value

    @classmethod
    def read(cls, section: Mapping[str, Any]) -> "DataSpec":
        """Read a separate ``data`` section.

        Raises:
            DataError: naming each field with a wrong value.
        """
        return _checked(cls, section, "data", DataError)

    @property
    def held_out(self) -> bool:
        """Whether there are held-out rows."""
        return bool(self.eval) or self.eval_split > 0


class Training(Section):
    """Settings with TrainingArguments' names; others are checked by the table in qwen_job/facts/train_settings.py."""

    model_config = ConfigDict(extra="allow")

    num_train_epochs: float = Field(default=choices.EPOCHS, gt=0)
    max_steps: int = -1
    learning_rate: float = Field(default=choices.LEARNING_RATE, gt=0)
    per_device_train_batch_size: int = Field(default=1, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    weight_decay: float = Field(default=choices.WEIGHT_DECAY, ge=0)
    adam_beta1: float = Field(default=choices.ADAM_BETA1, ge=0, lt=1)
    adam_beta2: float = Field(default=choices.ADAM_BETA2, ge=0, lt=1)
    adam_epsilon: float = Field(default=choices.ADAM_EPSILON, gt=0)
    max_grad_norm: float = Field(default=choices.MAX_GRAD_NORM, ge=0)
    lr_scheduler_type: str = choices.SCHEDULER
    warmup_ratio: float = Field(default=choices.WARMUP_RATIO, ge=0, lt=1)
    logging_steps: int = Field(default=1, ge=1)
    eval_strategy: Literal["steps", "epoch"] = "steps"
    eval_steps: int | None = Field(default=None, ge=1)
    save_strategy: Literal["steps", "epoch"] = "steps"
    save_steps: int = Field(default=choices.SAVE_STEPS, ge=0)
    save_total_limit: int | None = Field(default=choices.SAVE_TOTAL_LIMIT, ge=1)
    memory_save_steps: Literal["auto"] | Annotated[int, Field(ge=0)] = 0
    longest_first: bool = False
    dataloader_num_workers: int = Field(default=choices.DATALOADER_WORKERS, ge=0)
    report_to: list[str] = Field(default=[choices.REPORT_TO])
    early_stopping_patience: int | None = Field(default=None, ge=1)
    load_best_model_at_end: bool = False

    def extra(self) -> dict[str, Any]:
        """Return the other TrainingArguments that the user set."""
        return dict(self.model_extra or {})


class Stop(Section):
    """Seconds allowed for saving and exiting. The time limit itself comes from the target: see run/signals.py."""

    grace_seconds: float = Field(default=choices.GRACE_SECONDS, ge=0)


class Guards(Section):
    """What to do if the loss is not finite or a rank hangs."""

    on_nan: choices.OnNan = "stop"
    loss_spike_factor: float | None = Field(default=choices.LOSS_SPIKE_FACTOR, gt=1)
    skip_rows: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    hang_seconds: float = Field(default=choices.HANG_SECONDS, ge=0)


class Webhook(Fixed):
    """One webhook; ``url`` and ``secret`` say where its address and key are: env:NAME or file:PATH."""

    kind: choices.WebhookKind
    url: str
    secret: str | None = None
    events: tuple[choices.NotifyEvent, ...] = choices.NOTIFY_EVENTS


class Monitor(Section):
    """What the process beside the training writes and serves; ``report_every`` in seconds, 0 for never."""

    report_every: int = Field(default=choices.REPORT_EVERY, ge=0)
    prometheus_file: Path | None = None
    prometheus_port: int | None = Field(default=None, ge=1, le=65535)


class Planned(Section):
    """The plan's estimates, shown beside the measured values in messages and in the report.

    Memory is per GPU, or per process on a CPU: ``memory_bytes_per_gpu`` counts what the run measures (on a GPU, what
    torch allocates), ``memory_items`` everything, for a picture against ``memory_capacity_bytes``.
    ``memory_save_bytes``: what train.memory_save_steps takes of /dev/shm on a node, and ``host_memory_bytes`` what all
    else takes of the node's memory.
    """

    memory_bytes_per_gpu: int | None = None
    step_seconds: float | None = None
    tokens_per_second: float | None = None
    memory_items: dict[str, int] | None = None
    memory_capacity_bytes: int | None = None
    memory_save_bytes: int | None = None
    host_memory_bytes: int | None = None


def plain(value: Any, *, only_set: bool = False) -> Any:
    """Return a section, or a value in one, as plain data for JSON and YAML, in the order of its fields.

    Unlike ``model_dump``, this builds no serializer and accepts paths that are not UTF-8. ``only_set`` omits defaults.
    """
    if isinstance(value, BaseModel):
        names = [name for name in type(value).model_fields if not only_set or name in value.model_fields_set]
        return {name: plain(getattr(value, name), only_set=only_set) for name in [*names, *(value.model_extra or {})]}
    if isinstance(value, (list, tuple)):
        return [plain(item, only_set=only_set) for item in value]
    return str(value) if isinstance(value, Path) else value


_WORDS = {
    "extra_forbidden": "unknown key; remove it or correct its name",
    "missing": "is missing",
    "string_too_short": "is empty",
    "too_short": "is empty; give at least one",
}


def _checked(kind: type[_Kind], values: Mapping[str, Any], section: str, refusal: type[QwenJobError]) -> _Kind:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise refusal(faults(error, section)) from None


def faults(error: ValidationError, section: str) -> str:
    """Return pydantic's errors as ``field: text``, joined into one message."""
    return "; ".join(f"{field_name((section, *item['loc']))}: {fault_text(item)}" for item in error.errors())


def field_name(place: tuple[str | int, ...]) -> str:
    """Return a field as users write it: data.train[1].weight."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def fault_text(item: Any) -> str:
    """Return the message of one pydantic error, with the offending value if it is short."""
    if text := _WORDS.get(item["type"]):
        return text
    if item["type"] == "name":
        return str(item["msg"])
    found = item.get("input")
    shown = f" (found {found!r})" if isinstance(found, (str, int, float)) and len(repr(found)) <= 40 else ""
    return f"{item['msg']}{shown}"
