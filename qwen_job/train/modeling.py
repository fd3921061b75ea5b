"""The model to train and its optimizer."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from qwen_job.errors import ModelError
from qwen_job.facts.config_fields import check_fields, longest_row, too_long
from qwen_job.facts.model_files import read_text_config
from qwen_job.facts.positions import with_yarn
from qwen_job.models.loading import build_native, load_native
from qwen_job.models.tensors import read_folder
from qwen_job.run.config import DeepSpeedConfig, TrainConfig
from qwen_job.train.attention import check_kernel, implementation, try_kernel, window_of
from qwen_job.train.deepspeed_config import expert_parallel_size, offloads_optimizer, zero_stage
from qwen_job.train.expert_parallel import set_experts_apart
from qwen_job.train.flops import Shape
from qwen_job.train.kernels import use_lean_kernels
from qwen_job.train.packed_state import linear_layers

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_NOT_DECAYED = re.compile(r"bias$|norm|conv1d", re.IGNORECASE)


def build_model(config: TrainConfig, deepspeed: DeepSpeedConfig, folder: Path, *, reads_weights: bool = True) -> Any:
    """Load the model without remote code, in the precision and with the attention of train.yaml.

    ``reads_weights``: False where a checkpoint will replace every weight.

    Raises:
        ModelError: transformers cannot load the folder, weights are missing in it, or its config.json asks for what
            would not be honoured.
        EnvironmentFault: this GPU's attention kernel does not do what it should.
    """
    values = _checked_config(config, folder)
    kind = config.attention if config.sequence_parallel_size == 1 else "varlen"  # ours: see share_rows
    with _partitioned(deepspeed):
        if reads_weights:
            device = _device_that_converts(config, deepspeed, folder)
            model, report = load_native(folder, DTYPES[config.precision], implementation(kind), values, device)
            if missing := sorted(report["missing_keys"]):
                raise ModelError(f"{folder}: {len(missing)} weights are missing, {missing[0]} the first")
        else:
            model = build_native(folder, DTYPES[config.precision], implementation(kind), values)
    check_kernel(model.config, config.attention)
    model.config.use_cache = False
    if config.device == "cuda":
        # Its backward gives NaN on Hopper for an explicit mask and some lengths: pytorch issue 196678.
        torch.backends.cuda.enable_cudnn_sdp(False)
        use_lean_kernels(model)
        if config.attention == "varlen":
            try_kernel(torch.device("cuda"), DTYPES[config.precision], window_of(model.config))
    return model


@contextlib.contextmanager
def _partitioned(deepspeed: DeepSpeedConfig) -> Iterator[None]:
    """Let transformers give each rank its part of the weights while it loads them, for ZeRO-3."""
    if zero_stage(deepspeed) != 3:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    kept = HfDeepSpeedConfig(deepspeed)  # transformers only holds a weak reference
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del kept


def _device_that_converts(config: TrainConfig, deepspeed: DeepSpeedConfig, folder: Path) -> torch.device | None:
    """Return this rank's GPU if the weights are of another type than they are trained in; None: load without it.

    Converted in host memory, they would be a copy of all weights in every process. ZeRO-3 converts them one by one.
    """
    if config.device != "cuda" or zero_stage(deepspeed) == 3:
        return None
    names = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
    kinds = {tensor.dtype for tensor in read_folder(folder).values()}
    return None if kinds == {names[config.precision]} else torch.device("cuda", torch.cuda.current_device())


def _checked_config(config: TrainConfig, folder: Path) -> dict[str, object]:
    """Return the config to build the model from: the folder's, with the positions that train.yaml asks for."""
    values, scaling = read_text_config(folder), config.model.rope_scaling
    check_fields(values, f"{folder}/config.json")
    if scaling is not None:
        original = scaling.original_max_position_embeddings
        values = with_yarn(values, scaling.factor, original, f"{folder}/config.json")
    longest, length = longest_row(values), config.data.max_length
    if longest is not None and length > longest:
        raise ModelError(f"{folder}/config.json: rope_scaling: {too_long(length, longest)}")
    return values


def shape_of(model: Any) -> Shape:
    """Read the shape from the loaded model: of experts what a token passes; ZeRO-3's partitioned parameters in full."""
    config = model.config.get_text_config()
    head = config.vocab_size * config.hidden_size
    active = _active_share(config)
    body = sum(
        _full_size(parameter) * (active if ".experts." in name else 1)
        for name, parameter in model.named_parameters()
        if parameter_is_matrix(name, parameter) and "embed_tokens" not in name and "lm_head" not in name
    )
    # The work of linear attention beside its matrices is small, and does not grow with the document.
    linear = len(linear_layers(model))
    return Shape(config.num_hidden_layers - linear, config.hidden_size, round(body), head)


def _active_share(config: Any) -> float:
    """Return the share of a mixture's experts that a token passes."""
    experts = getattr(config, "num_experts", None)
    return config.num_experts_per_tok / experts if experts else 1.0


def parameter_is_matrix(name: str, parameter: Any) -> bool:
    """Tell whether weight decay applies: to matrices, not to norms, biases, A_log and the taps of convolutions."""
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return len(shape) > 1 and not _NOT_DECAYED.search(name)


def build_optimizer(model: Any, config: TrainConfig, deepspeed: DeepSpeedConfig) -> torch.optim.Optimizer:
    """AdamW over two groups, decayed and not; DeepSpeed's CPU kernel where the state lives in host memory.

    A third one has the experts if ranks split them.
    """
    training = config.training
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in named if parameter_is_matrix(name, p)], "weight_decay": training.weight_decay},
        {"params": [p for name, p in named if not parameter_is_matrix(name, p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if (size := expert_parallel_size(deepspeed)) > 1:
        groups = set_experts_apart(groups, model, size)
    settings: dict[str, Any] = {
        "lr": training.learning_rate,
        "betas": (training.adam_beta1, training.adam_beta2),
        "eps": training.adam_epsilon,
    }
    # With offload, engine.py turns this AdamW into DeepSpeed's CPU kernel, groups and numbers kept.
    on_gpu = config.device == "cuda" and not offloads_optimizer(deepspeed)
    return torch.optim.AdamW(groups, fused=on_gpu or None, **settings)


def _full_size(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))
