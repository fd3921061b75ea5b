"""Count what autograd saves in published models at full size, without allocating them, and compare with the plan.

    python benchmarks/bench_activations.py [MODEL ...] [--tokens 1024]

Tensors are torch's fake ones: they have shapes and storages, and no memory. Attention is sdpa with a block mask, as in
packed training on a CPU; linear attention is transformers' fallback. Needs torch, no GPU; a minute for each model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qwen_job.facts.hardware import load_gpu
from qwen_job.facts.model_shapes import load_model_shape
from qwen_job.models.random_init import load_config
from qwen_job.plan.estimate.activations import activation_bytes
from qwen_job.plan.estimate.layout import Layout

MODELS = ("qwen3-0.6b", "qwen3-30b-a3b", "qwen3.5-2b", "qwen3.5-35b-a3b")


def counted(name: str, tokens: int) -> tuple[int, int]:
    """Return the parameters of a model, and the bytes that its decoder saves for one row of ``tokens`` in bf16."""
    config = load_config(name)
    settings = transformers.CONFIG_MAPPING[str(config["model_type"])](
        **{**config, "use_cache": False}, attn_implementation="sdpa"
    )
    saved: dict[int, int] = {}
    held: list[Any] = []  # a storage that is freed may give its address to another
    with FakeTensorMode():
        model = transformers.AutoModelForCausalLM.from_config(settings).train()
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            held.append(storage)
            if storage._cdata not in weights:
                saved[storage._cdata] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.model(input_ids=torch.zeros((1, tokens), dtype=torch.long))
        return sum(parameter.numel() for parameter in model.parameters()), sum(saved.values())


def main() -> None:
    """Print a line for each model: parameters and activations, planned and counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--tokens", type=int, default=1024)
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    torch.set_default_dtype(torch.bfloat16)
    print(f"{'model':20} {'parameters':>16} {'planned':>16} {'activations':>12} {'planned':>12} error")
    for name in arguments.models:
        shape = load_model_shape(name)
        layout = Layout(shape, 1, 1, zero_stage=0, gpu=load_gpu("CPU"), sequence_length=arguments.tokens)
        layout = layout._replace(attention="sdpa", gradient_checkpointing=False)
        expected = activation_bytes(layout)
        planned = expected["saved"] + expected["final norm"]
        parameters, measured = counted(name, arguments.tokens)
        numbers = f"{parameters:16,} {shape.num_parameters:16,} {measured / 1e9:9.3f} GB {planned / 1e9:9.3f} GB"
        print(f"{name:20} {numbers} {planned / measured - 1:+.1%}", flush=True)


if __name__ == "__main__":
    main()
