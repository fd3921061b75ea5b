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
from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: E402

from qwen_job.facts.model_shapes import ModelShape, model_shape_from_config  # noqa: E402
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


def build(shape: ModelShape, dtype: torch.dtype, attention: str) -> Qwen2ForCausalLM:
    """Return a randomly initialised Qwen2 model of this shape."""
    config = Qwen2Config(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_position_embeddings,
        tie_word_embeddings=shape.tie_word_embeddings,
        use_cache=False,
        attn_implementation=attention,
    )
    return Qwen2ForCausalLM(config).to(dtype).train()


def engine_for(model: Qwen2ForCausalLM, stage: int, dtype: torch.dtype, zero: dict[str, Any], steps: int) -> Any:
    """Return a DeepSpeed engine with AdamW in two groups, as the trainer builds it."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
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


def count_states(shape: ModelShape, stage: int, dtype: torch.dtype) -> None:
    """Train one step of two micro-batches, then compare weights, gradients, master weights and moments."""
    world = torch.distributed.get_world_size()
    model = build(shape, dtype, "sdpa")
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
        report(f"ZeRO-{stage} {PRECISION[dtype]} {world} ranks: {item}", planned[item], size)


def count_offload(shape: ModelShape, stage: int, dtype: torch.dtype) -> None:
    """Compare everything that an offloaded engine keeps, on the host and on the device: here both are the host."""
    world, precision = torch.distributed.get_world_size(), PRECISION[dtype]
    before = alive()
    model = build(shape, dtype, "sdpa")
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
    report(f"ZeRO-{stage} {precision} {world} ranks, offload: host and device", sum(kept) / world + device, measured)


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
    shape: ModelShape, dtype: torch.dtype, attention: str, checkpointing: bool = False, compiled: bool = False
) -> None:
    """Compare what the decoder keeps between forward and backward, without the head.

    ``compiled``: as our trainer compiles it for a GPU, up to the graphs; their kernels keep nothing else.
    """
    model = build(shape, dtype, attention)
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
        attention="varlen" if attention == "sdpa" else attention,
        gradient_checkpointing=checkpointing,
        fused_norms=compiled,
        compiled=compiled,
    )
    planned = activation_bytes(layout)["saved"]
    del output
    how = " checkpointed" if checkpointing else " compiled" if compiled else ""
    name = f"activations {PRECISION[dtype]} {attention}{how}"
    report(name, planned, measured)


def main() -> None:
    """Compare states and activations of a tiny model on the CPU."""
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    shape = model_shape_from_config(TINY, "tiny")
    if torch.distributed.get_rank() == 0:
        print(f"{'':66} {'planned':>15} {'measured':>15}   error", flush=True)
    for dtype in PRECISION:
        for stage in range(4):
            count_states(shape, stage, dtype)
        for stage in (2, 3):
            count_offload(shape, stage, dtype)
    for dtype in PRECISION:
        for attention in ("sdpa", "eager"):
            for checkpointing in (False, True):
                count_activations(shape, dtype, attention, checkpointing)
        count_activations(shape, dtype, "sdpa", compiled=True)


if __name__ == "__main__":
    main()
    torch.distributed.destroy_process_group()
