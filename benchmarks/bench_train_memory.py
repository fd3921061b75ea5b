"""Peak memory of one GPU per setting, as the trainer reports it.

    python benchmarks/bench_train_memory.py

Each line is a run of a few steps. A setting that does not fit shows the trainer's own message. The plan's estimate is
compared with published peaks in bench_memory.py; these are ours. Without a GPU it shows a process's memory only.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import train_runs

SETTINGS: dict[str, dict[str, Any]] = {
    "plain loss": {"fused_loss": "none"},
    "chunked loss": {"fused_loss": "chunked"},
    "chunked loss, checkpointing": {"fused_loss": "chunked", "gradient_checkpointing": True},
}


def main() -> None:
    """Print a table of settings, row lengths and peaks."""
    gpu = train_runs.on_gpu()
    print(f"{train_runs.device_name()}\n\n| setting | tokens a micro-batch | peak memory |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for name, changes in SETTINGS.items():
            for length in (512, 2048, 8192) if gpu else (128, 256):
                lines = train_runs.run(
                    Path(scratch) / f"{name}-{length}".replace(" ", "-").replace(",", ""),
                    **changes,
                    data__max_length=length,
                    training__per_device_train_batch_size=1,
                    training__max_steps=4,
                )
                print(f"| {name} | {length} | {peak(lines)} |", flush=True)


def peak(lines: list[dict[str, Any]]) -> str:
    """Return the highest memory of any step, or why there is none."""
    if lines[0]["type"] == "failed":
        return f"exit {lines[0]['exit_code']}: {lines[0]['reason'][:120]}"
    return f"{max(line['memory_bytes'] for line in lines if line['type'] == 'step') / 2**30:.2f} GiB"


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
