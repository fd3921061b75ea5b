"""One of two ranks, of which the second has a compiler that fails: writes what came of it to a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from qwen_job.run.config import parse_config
from qwen_job.train.compiling import Setting, compile_layers
from qwen_job.train.ranks import Ranks
from qwen_job.train.rendezvous import meet, place_from_environment
from qwen_job.train.runlog import RunLog
from tests.train import tiny
from tests.train.test_loss import tiny_model


def main(folder: Path) -> None:
    place = place_from_environment()
    store = meet(place)
    dist.init_process_group("gloo", store=store, rank=place.rank, world_size=place.world_size)

    def compiler(graph: Any, _inputs: Any) -> Any:
        if place.rank == 1:
            raise RuntimeError("this compiler is broken")
        return graph.forward

    torch._dynamo.register_backend(compiler, name="half")
    values, _ = tiny.settings(folder / "run", torch_compile=True)
    values["training"]["torch_compile_backend"] = "half"
    config, model = parse_config(values, "train.yaml"), tiny_model(num_key_value_heads=4)
    log = RunLog(config.output_dir, active=place.is_first)

    def loss() -> Any:
        return model(input_ids=torch.arange(16)[None]).logits.square().sum()

    expected = loss().item()
    ranks = Ranks(place.rank, place.world_size, torch.device("cpu"))
    compiled = compile_layers(Setting(config, {}, place, store, ranks, log), model, folder, [loss], 0)
    result = {"compiled": compiled, "loss": loss().item(), "expected": expected}
    (folder / f"rank-{place.rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
