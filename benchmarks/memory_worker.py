"""One rank of bench_memory.py --cpu: trains a few steps under DeepSpeed and counts bytes.

Nothing is traced: tensors are counted by their storages, activations by what autograd saves (saved-tensor hooks) and,
under checkpointing, by what the checkpoint's closures keep alive.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

warnings.filterwarnings("ignore")

import deepspeed  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from qwen_job.facts.hardware import load_gpu  # noqa: E402
from qwen_job.facts.model_shapes import model_shape_from_config  # noqa: E402
from qwen_job.plan.estimate.activations import activation_bytes  # noqa: E402
from qwen_job.plan.estimate.layout import Layout  # noqa: E402
from qwen_job.plan.estimate.memory import estimate_memory, model_state_bytes, zero_settings  # noqa: E402
from qwen_job.train.kernels import use_lean_kernels, use_lean_rotation  # noqa: E402

# The shared-memory collective would be compiled for minutes; gloo itself is enough to count tensors.
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]

TINY = {
    "model_type": "qwen2",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
HEADS = {"head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 96}
LINEAR = {
    "full_attention_interval": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
}
SHARED = {"shared_expert_intermediate_size": 96}
# Small models of each family; the last two have the proportions of Qwen3-30B-A3B and Qwen3.5-35B-A3B.
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3.5": {**TINY, **HEADS, **LINEAR, "model_type": "qwen3_5_text"},
    "Qwen2-MoE": {**TINY, **EXPERTS, **SHARED, "model_type": "qwen2_moe"},
    "Qwen3-MoE": {**TINY, **HEADS, **EXPERTS, "model_type": "qwen3_moe", "norm_topk_prob": True},
    "Qwen3.5-MoE": {**TINY, **HEADS, **LINEAR, **EXPERTS, **SHARED, "model_type": "qwen3_5_moe_text"},
}
PRECISION = {torch.bfloat16: "bf16", torch.float32: "fp32"}
TINY_ZERO = {"reduce_bucket_size": 500_000, "stage3_param_persistence_threshold": 1000, "sub_group_size": 300_000}


def storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Return bytes by storage, so that views and shared tensors count once."""
    found: dict[int, int] = {}
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
            storage = tensor.untyped_storage()
            with suppress(RuntimeError):  # a compiler's stand-ins have no memory
                found[storage.data_ptr()] = storage.nbytes()
    found.pop(0, None)
    return found


def alive() -> dict[int, int]:
    """Return every storage that a Python tensor holds."""
    gc.collect()
    return storages(item for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter))


def report(name: str, predicted: float, measured: float) -> None:
    """Print one line of the comparison; rank 0 only."""
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        error = predicted / measured - 1 if measured else float("inf" if predicted else 0)
        print(f"{name:66} {predicted / 1e6:12.3f} MB {measured / 1e6:12.3f} MB {error:+7.1%}", flush=True)


def build(config: dict[str, Any], dtype: torch.dtype, attention: str) -> Any:
    """Return a randomly initialised model of a config.json."""
    settings = transformers.CONFIG_MAPPING[config["model_type"]](
        **{**config, "use_cache": False}, attn_implementation=attention
    )
    return transformers.AutoModelForCausalLM.from_config(settings).to(dtype).train()


def engine_for(model: Any, stage: int, dtype: torch.dtype, zero: dict[str, Any], steps: int) -> Any:
    """Return a DeepSpeed engine with AdamW in two groups, as the trainer builds it."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    # As the trainer does: all experts of a layer are gathered together.
    blocks = [type(m) for m in model.modules() if type(m).__name__.endswith("SparseMoeBlock")]
    if stage == 3 and blocks:
        deepspeed.utils.set_z3_leaf_modules(model, list(dict.fromkeys(blocks)))
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": steps,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "gradient_clipping": 1.0,
        "zero_optimization": {**zero_settings(stage), **zero},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    return deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups, lr=1e-4), config=config)[0]


def gradients(engine: Any, stage: int) -> dict[int, int]:
    """Return the storages of the gradients that wait for the next micro-batch."""
    if stage < 2:
        return storages(p.grad for p in engine.module.parameters())
    if stage == 2:
        kept = (engine.optimizer.averaged_gradients, engine.optimizer.all_grad_tensors)
        return storages(tensor for groups in kept for group in groups.values() for tensor in group or ())
    return storages([engine.optimizer.grad_partitions_flat_buffer])


def optimizer_tensors(engine: Any) -> tuple[dict[int, int], dict[int, int]]:
    """Return the storages of master weights and of Adam's moments."""
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    kept = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
    masters = kept or [p for group in inner.param_groups for p in group["params"]]
    weights = storages(engine.module.parameters())
    own = {key: size for key, size in storages(masters).items() if key not in weights}
    moments = storages(value for state in inner.state.values() for value in state.values() if torch.is_tensor(value))
    return own, moments


def count_states(name: str, config: dict[str, Any], stage: int, dtype: torch.dtype) -> None:
    """Train one step of two micro-batches, then compare weights, gradients, master weights and moments."""
    world, shape = torch.distributed.get_world_size(), model_shape_from_config(config, name)
    model = build(config, dtype, "sdpa")
    engine = engine_for(model, stage, dtype, TINY_ZERO, steps=2)
    tokens = torch.randint(0, shape.vocab_size, (1, 64))
    for micro in range(3):  # one whole step, and the first half of the next: its gradients wait
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        if micro < 2:
            engine.step()
    weights = [getattr(p, "ds_tensor", p) for p in model.parameters()]
    masters, moments = optimizer_tensors(engine)
    measured = {
        "weights": sum(storages(weights).values()),
        "gradients": sum(gradients(engine, stage).values()),
        "master weights": sum(masters.values()),
        "optimizer": sum(moments.values()),
    }
    planned = model_state_bytes(shape.num_parameters, zero_stage=stage, world_size=world, precision=PRECISION[dtype])
    for item, size in measured.items():
        report(f"{name}: ZeRO-{stage} {PRECISION[dtype]} {world} ranks: {item}", planned[item], size)


def count_offload(name: str, config: dict[str, Any], stage: int, dtype: torch.dtype) -> None:
    """Compare everything that an offloaded engine keeps, on the host and on the device: here both are the host."""
    world, precision = torch.distributed.get_world_size(), PRECISION[dtype]
    shape, before = model_shape_from_config(config, name), alive()
    model = build(config, dtype, "sdpa")
    zero = {**TINY_ZERO, "offload_optimizer": {"device": "cpu", "pin_memory": False}}
    engine = engine_for(model, stage, dtype, zero, steps=2)
    tokens = torch.randint(0, shape.vocab_size, (1, 64))
    for micro in range(3):
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        if micro < 2:
            engine.step()
    measured = sum(size for key, size in alive().items() if key not in before)
    layout = Layout(shape, world, world, stage, offload_optimizer=True, precision=precision)
    planned = estimate_memory(layout, zero={**zero_settings(stage), **TINY_ZERO})
    kept = [planned.host[item] for item in planned.host if item.startswith(("offload", "pinned"))]
    device = planned.gpu["weights"] + planned.gpu.get("offload staging", 0)
    if stage == 3:  # its one bucket stays; ZeRO-2 frees its two after backward
        device += planned.gpu["reduce buckets"]
    report(
        f"{name}: ZeRO-{stage} {precision} {world} ranks, offload: host and device",
        sum(kept) / world + device,
        measured,
    )


@contextmanager
def saved_tensors(model: torch.nn.Module) -> Iterator[dict[int, torch.Tensor]]:
    """Collect what autograd saves inside the block, but for the weights."""
    weights = storages(model.parameters())
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        key = tensor.untyped_storage().data_ptr()
        if key not in weights:
            saved[key] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def count_activations(
    name: str,
    config: dict[str, Any],
    dtype: torch.dtype,
    attention: str,
    checkpointing: bool = False,
    compiled: bool = False,
) -> None:
    """Compare what the decoder keeps between forward and backward, without the head.

    ``compiled``: as our trainer compiles it for a GPU, up to the graphs; their kernels keep nothing else.
    """
    shape = model_shape_from_config(config, name)
    model = build(config, dtype, attention)
    if compiled:
        use_lean_kernels(model)
        use_lean_rotation(model, wanted=False)
        for layer in model.model.layers:
            layer.compile(backend="aot_eager_decomp_partition")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    length = 256
    tokens = torch.randint(0, shape.vocab_size, (1, length))
    before = alive()
    with saved_tensors(model) as saved:
        output = model.model(input_ids=tokens).last_hidden_state
    kept = {**alive(), **storages(saved.values())}
    measured = sum(size for key, size in kept.items() if key not in before)
    layout = Layout(
        shape,
        1,
        1,
        zero_stage=0,
        sequence_length=length,
        precision=PRECISION[dtype],
        gpu=load_gpu("CPU"),
        attention="varlen" if attention == "sdpa" else attention,
        gradient_checkpointing=checkpointing,
        fused_norms=compiled,
        compiled=compiled,
    )
    expected = activation_bytes(layout)
    planned = expected["saved"] + expected["final norm"]
    del output
    how = " checkpointed" if checkpointing else " compiled" if compiled else ""
    report(f"{name}: activations {PRECISION[dtype]} {attention}{how}", planned, measured)


def main() -> None:
    """Compare states and activations of a tiny model on the CPU."""
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    if torch.distributed.get_rank() == 0:
        print(f"{'':66} {'planned':>15} {'measured':>15}   error", flush=True)
    for dtype in PRECISION:
        for stage in range(4):
            count_states("Qwen2", TINY, stage, dtype)
        for stage in (2, 3):
            count_offload("Qwen2", TINY, stage, dtype)
    for name, config in FAMILIES.items():
        for stage in (2, 3):
            count_states(name, config, stage, torch.bfloat16)
        count_offload(name, config, 3, torch.bfloat16)
    for dtype in PRECISION:
        for attention in ("sdpa", "eager"):
            for checkpointing in (False, True):
                count_activations("Qwen2", TINY, dtype, attention, checkpointing)
        count_activations("Qwen2", TINY, dtype, "sdpa", compiled=True)
        for name, config in FAMILIES.items():
            for checkpointing in (False, True):
                count_activations(name, config, dtype, "sdpa", checkpointing)


if __name__ == "__main__":
    main()
    torch.distributed.destroy_process_group()
