"""The keys of DeepSpeed's JSON, which silently ignores any other key, also one that is misspelt."""

from __future__ import annotations

from qwen_job.text import MISSPELT, did_you_mean

# The top level of DeepSpeed 0.19's JSON (deepspeed/runtime/config.py), which reads no key that it does not know.
KNOWN = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "zero_optimization", "bf16", "fp16", "amp", "optimizer", "scheduler", "steps_per_print",
    "wall_clock_breakdown", "memory_breakdown", "dump_state", "prescale_gradients", "gradient_predivide_factor",
    "communication_data_type", "sparse_gradients", "disable_allgather", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer", "checkpoint", "data_types", "activation_checkpointing", "aio",
    "flops_profiler", "autotuning", "curriculum_learning", "data_efficiency", "compression_training",
    "sparse_attention", "hybrid_engine", "elasticity", "nebula", "tensorboard", "wandb", "csv_monitor", "comet",
    "comms_logger", "compile", "torch_autocast", "tensor_parallel", "sequence_parallel_size", "expert_parallel",
    "pipeline", "seq_parallel_communication_data_type", "timers", "monitor", "dataloader_drop_last",
    "graph_harvesting", "weight_quantization", "use_data_before_expert_parallelism", "log_level",
    "gradient_allreduce_op", "disable_python_gc", "zenflow", "model_info", "load_from_fp32_weights",
    "managed_gradient_accumulation",
)  # fmt: skip

# Of AutoEP's keys (deepspeed/module_inject/auto_ep_config.py) those that do not change what the model computes.
_EXPERT_PARALLEL = (
    "enabled", "autoep_size", "use_grouped_mm", "disable_triton_grouped_mm", "comm_backend", "comm_num_sm",
    "comm_qp_margin", "comm_max_tokens_per_rank", "async_split_plan",
)  # fmt: skip


def key_fault(key: str, value: object) -> str:
    """Return what is wrong with a key of the top level; "" unless it looks like a misspelt one, or is not offered."""
    if key == "expert_parallel":
        return _expert_parallel_fault(value)
    if key == "sequence_parallel_size" and value != 1:
        # DeepSpeed would count other batches than we do.
        return "rows are shared by train.sequence_parallel_size; write that, and remove this key"
    if key in KNOWN:
        return ""
    meant = did_you_mean(key, KNOWN, cutoff=MISSPELT)
    return f"DeepSpeed has no such key and would ignore it{meant}" if meant else ""


def _expert_parallel_fault(block: object) -> str:
    if not isinstance(block, dict):
        return ""  # the reader of the whole file says what it expects
    size = block.get("autoep_size", 1)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        return f"autoep_size: expected a positive whole number, found {size!r}"
    others = [str(key) for key in block if key not in _EXPERT_PARALLEL]
    if others:
        return f"{others[0]}: is not offered: the model says how its experts work; remove it"
    return ""
