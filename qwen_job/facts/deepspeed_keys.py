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


def key_fault(key: str, value: object) -> str:
    """Return what is wrong with a key of the top level: it looks like a misspelt one, or is not offered; else ""."""
    if key == "expert_parallel" and isinstance(value, dict) and value.get("enabled", False) is not False:
        return (
            "is not offered: a checkpoint's experts would be split over the ranks, and a model exported from it would "
            "hold those of rank 0; remove it: ZeRO-3 splits the experts, too"
        )
    if key in KNOWN:
        return ""
    meant = did_you_mean(key, KNOWN, cutoff=MISSPELT)
    return f"DeepSpeed has no such key and would ignore it{meant}" if meant else ""
