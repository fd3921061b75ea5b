"""The optimizer in host memory: the reference's own setting, with DeepSpeed's CPU kernel compiled for this machine."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import optional
from tests.train import tiny

pytestmark = [pytest.mark.train, pytest.mark.slow]

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def kernels() -> str:
    """Return the folder of the compiled kernel; compiling takes two minutes, once."""
    if not shutil.which("g++"):
        optional.skip("compiler", "DeepSpeed's CPU kernel needs a compiler: apt-get install g++")
    version = subprocess.run(
        [sys.executable, "-c", "import deepspeed, torch; print(deepspeed.__version__, torch.__version__, sep='-')"],
        env=tiny.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    folder = CHECKOUT / ".cache" / f"kernels-{version.stdout.split()[-1]}"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)  # a killed compilation leaves a lock behind
        compile_it = "from deepspeed.ops.op_builder import CPUAdamBuilder; CPUAdamBuilder().load(verbose=False)"
        folder.mkdir(parents=True)
        done = subprocess.run(
            [sys.executable, "-c", compile_it],
            env=tiny.environment(DS_ACCELERATOR="cpu", TORCH_EXTENSIONS_DIR=str(folder)),
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (folder / "done").touch()
    return str(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose runs share data, model and prepared rows."""
    return tmp_path_factory.mktemp("offload")


@pytest.fixture(scope="module")
def expected(home: Path) -> list[float]:
    """The losses with torch's AdamW where the weights are."""
    calm = tiny.write_run(home / "plain", 2)
    code, output = tiny.run(calm)
    assert code == 0, output
    return [line["loss"] for line in tiny.metrics(calm.parent, "step")]


def offloaded(folder: Path, stage: int) -> Path:
    """Write a run whose optimizer lives in host memory; returns its train.yaml."""
    train_yaml = tiny.write_run(folder, stage)
    path = folder / "deepspeed.json"
    values = json.loads(path.read_text())
    values["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    path.write_text(json.dumps(values))
    return train_yaml


@pytest.mark.parametrize("stage", [2, 3])
def test_an_offloaded_optimizer_learns_the_same_and_resumes_bit_for_bit(
    home: Path, expected: list[float], kernels: str, stage: int
) -> None:
    calm = offloaded(home / f"calm{stage}", stage)
    code, output = tiny.run(calm, TORCH_EXTENSIONS_DIR=kernels)
    assert code == 0, output
    losses = [line["loss"] for line in tiny.metrics(calm.parent, "step")]
    assert losses == pytest.approx(expected, abs=1e-4) and losses[-1] < losses[0] - 0.5
    rough = offloaded(home / f"rough{stage}", stage)
    process = tiny.start(rough, TORCH_EXTENSIONS_DIR=kernels)
    tiny.wait_for_step(rough.parent, 6, process)
    tiny.workers(process)[1].send_signal(signal.SIGKILL)
    assert process.wait(60) == 128 + signal.SIGKILL, process.communicate()[0]
    code, output = tiny.run(rough, TORCH_EXTENSIONS_DIR=kernels)
    assert code == 0 and "resuming from step-" in output, output
    first, second = ((folder / "model" / "model.safetensors").read_bytes() for folder in (calm.parent, rough.parent))
    assert first == second
