"""Host memory while the ranks of a node load a model: a random one, four processes, every way of loading.

    python benchmarks/bench_loading.py [--gib 2] [--processes 4] [--folder /tmp] [--zero 0 2]

Each process builds the model as the trainer does, and its memory is sampled until all have it. ``private`` is what the
processes hold for themselves (anonymous memory), summed and without the interpreter; ``mapped`` is the largest part of
the weights' file that they map, which is shared: one copy a node, in the page cache. Without ZeRO-3, which this script
does not measure: there, transformers reads values on the first rank only.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))
SHAPE = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 1024, "intermediate_size": 4096,
    "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 4096,
    "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu",
}  # fmt: skip
# Bytes of one layer of SHAPE in bf16.
LAYER = 2 * (3 * 1024 * 4096 + 2 * 1024 * 1024 + 2 * 1024 * 256)
# ZeRO stage and precision; the files hold bf16.
WAYS = [(0, "bf16"), (2, "bf16")]


def write_model(folder: Path, gib: float) -> int:
    """Write a random model of about ``gib`` GiB in bf16; returns its bytes."""
    import torch
    from safetensors.torch import save_file

    from qwen_job.facts.weights import expected_shapes
    from qwen_job.models.random_init import write_random_model

    config = {**SHAPE, "num_hidden_layers": max(1, round(gib * (1 << 30) / LAYER))}
    write_random_model({**config, "num_hidden_layers": 1}, ["hello"], folder)
    text = (
        (folder / "config.json")
        .read_text()
        .replace('"num_hidden_layers": 1', f'"num_hidden_layers": {config["num_hidden_layers"]}')
    )
    (folder / "config.json").write_text(text)
    weights = {name: torch.full(shape, 0.01, dtype=torch.bfloat16) for name, shape in expected_shapes(config).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return (folder / "model.safetensors").stat().st_size


def load(folder: Path, stage: int, precision: str) -> None:
    """Build the model on this rank as the trainer does, and wait for a line on standard input."""
    from qwen_job.train.rendezvous import quiet_deepspeed

    quiet_deepspeed("cpu")  # and no shared-memory collective, which would be compiled for minutes
    import deepspeed

    from qwen_job.run.config import parse_config
    from qwen_job.train.modeling import build_model

    deepspeed.init_distributed("gloo")
    world = int(os.environ["WORLD_SIZE"])
    config = parse_config(
        {
            "name": "loading", "output_dir": str(folder / "run"), "device": "cpu", "world_size": world,
            "model": {"name": str(folder), "source": "local"}, "data": {"train": ["x.json"]},
        },
        "train.yaml",
    )  # fmt: skip
    # A CPU is not asked for fp16, which only the loading needs.
    config = config.model_copy(update={"precision": precision})
    settings = {"zero_optimization": {"stage": stage}, "train_micro_batch_size_per_gpu": 1}
    settings[{"fp16": "fp16", "bf16": "bf16"}[precision]] = {"enabled": True}
    print("ready", flush=True)
    sys.stdin.readline()
    model = build_model(config, settings, folder)
    (folder / f"loaded-{os.environ['RANK']}").touch()
    sys.stdin.readline()
    del model


def memory(pid: int) -> tuple[int, int]:
    """Return the anonymous bytes of a process, and those of the weights' file that it maps and has read."""
    anonymous = mapped = 0
    ours = False
    try:
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            word, _, rest = line.partition(" ")
            if not word.endswith(":"):
                ours = line.endswith(".safetensors")
            elif word == "Anonymous:":
                anonymous += int(rest.split()[0]) << 10
            elif word == "Rss:" and ours:
                mapped += int(rest.split()[0]) << 10
    except OSError:
        pass
    return anonymous, mapped


def measure(folder: Path, processes: int, stage: int, precision: str) -> tuple[int, int]:
    """Return the peak of the private bytes of all processes, and of what one of them maps."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes),
              "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}  # fmt: skip
    command = [sys.executable, str(HERE), "--rank", str(folder), str(stage), precision]
    ranks = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for rank in range(processes)
    ]  # fmt: skip
    try:
        for rank in ranks:
            wait_for(rank, "ready")
        before = sum(memory(rank.pid)[0] for rank in ranks)
        for rank in ranks:
            tell(rank)
        private = mapped = 0
        loaded = [folder / f"loaded-{rank}" for rank in range(processes)]
        while not all(path.exists() for path in loaded):
            samples = [memory(rank.pid) for rank in ranks]
            private = max(private, sum(sample[0] for sample in samples) - before)
            mapped = max(mapped, *(sample[1] for sample in samples))
            if any(rank.poll() for rank in ranks):
                raise SystemExit(f"a rank ended: ZeRO-{stage}, {precision}")
            time.sleep(0.05)
        return private, mapped
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
        for path in folder.glob("loaded-*"):
            path.unlink()


def wait_for(rank: subprocess.Popen[str], word: str) -> None:
    """Wait for a line of a rank."""
    assert rank.stdout is not None
    for line in rank.stdout:
        if word in line:
            return
    raise SystemExit(f"rank {rank.args} ended before it was {word}")


def tell(rank: subprocess.Popen[str]) -> None:
    """Let a rank continue."""
    assert rank.stdin is not None
    rank.stdin.write("\n")
    rank.stdin.flush()


def main() -> None:
    """Measure every way and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--zero", type=int, nargs="*", default=[0, 2], help="ZeRO stages")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-loading-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        size = write_model(folder, options.gib)
        print(f"{options.processes} processes, {size / 1e9:.2f} GB of bf16 weights")
        print(f"{'ZeRO':>4} {'trained in':>10} {'private GB':>10} {'mapped GB':>10}")
        for stage, precision in [way for way in WAYS if way[0] in options.zero]:
            private, mapped = measure(folder, options.processes, stage, precision)
            print(f"{stage:>4} {precision:>10} {private / 1e9:>10.2f} {mapped / 1e9:>10.2f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        load(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        main()
