"""Model folders as qwen-job leaves them, and a vLLM server for each.

Heads are 32 wide at least: vLLM's attention on a CPU takes no smaller ones. Its linear attention on a CPU takes
bfloat16 alone ("CPU GDN attention requires BF16", vllm/model_executor/layers/mamba/ops/cpu/gdn_attention.py of 0.32),
and not heads of 32 ("Unexpected head dim size, 32"): those of Qwen3.5 are 128 wide here, as published.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from qwen_job.report.serving import serving_of
from tests.models.conftest import qwen_tiktoken as qwen_tiktoken
from tests.models.qwen1_checkpoint import write_qwen1
from tests.support.ports import free_port
from tests.support.templated import templated_model
from tests.support.tiny_models import TINY
from tests.train import tiny

from .chats import TEXTS

OWN_PYTHON = Path(__file__).resolve().parents[2] / ".venv-vllm" / "bin" / "python"
PYTHON = os.environ.get("VLLM_PYTHON") or str(OWN_PYTHON)
ON_CPU = Path(__file__).with_name("on_cpu")
SECONDS_TO_START = 600
QWEN2 = {"hidden_size": 128, "intermediate_size": 256, "rope_theta": 1000000.0, "max_position_embeddings": 256}
QWEN3 = {
    **QWEN2,
    "architecture": "Qwen3ForCausalLM",
    "model_type": "qwen3",
    "head_dim": 64,
    "attention_bias": False,
    "tie_word_embeddings": True,
}
WIDER = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64, "max_position_embeddings": 256}
QWEN3_MOE = {**TINY["qwen3_moe"], **WIDER, "moe_intermediate_size": 64, "rope_theta": 1000000.0}
QWEN3_5 = {
    **TINY["qwen3_5_text"],
    **WIDER,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "rope_parameters": {**TINY["qwen3_5_text"]["rope_parameters"], "mrope_section": [3, 3, 2]},
}
SHAPES = {"qwen2": QWEN2, "qwen3": QWEN3, "qwen3_moe": QWEN3_MOE, "qwen3_5": QWEN3_5}
# The kinds that are served in float32, and that in bfloat16.
EXACT = ["qwen2", "qwen3", "template", "qwen1", "converted", "qwen3_moe"]
ROUNDED = ["qwen3_5"]
# Settings that give one answer only: it shows whether the server reads them.
SAMPLING = {"do_sample": True, "top_k": 1, "max_new_tokens": 8}


class Server(NamedTuple):
    """A server that answers, and the folder and system prompt of its model."""

    folder: Path
    system_prompt: str
    address: str

    def ask(self, path: str, **values: Any) -> dict[str, Any]:
        """Return what the server answers to ``values`` as JSON; urllib.error.HTTPError when it refuses."""
        body = json.dumps({"model": str(self.folder), **values}).encode()
        request = urllib.request.Request(self.address + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)  # type: ignore[no-any-return]

    def models(self) -> dict[str, Any]:
        """Return what the server says of its model."""
        with urllib.request.urlopen(self.address + "/v1/models", timeout=60) as answer:
            return json.load(answer)["data"][0]  # type: ignore[no-any-return]


def trained(folder: Path, system_prompt: str, **changes: Any) -> Path:
    """Train a small model on a dozen conversations; returns the saved folder."""
    tiny.conversations(folder / "data.json", 12)
    shape = changes.pop("shape", {})
    changes |= {"data__system_prompt": system_prompt, "training__num_train_epochs": 40.0, "training__save_steps": 1000}
    train_yaml = tiny.write_run(folder / "run", world_size=1, **changes)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny.MODEL | shape), encoding="utf-8")
    code, output = tiny.run(train_yaml, processes=1, timeout=480)
    assert code == 0, output[-3000:]
    return folder / "run" / "model"


def qwen1(folder: Path, tiktoken: Path) -> Path:
    """Write a random model of the first generation, with sampling settings; returns its folder."""
    target = folder / "Qwen-tiny-Chat"
    target.mkdir()
    write_qwen1(target, tiktoken, hidden=64)
    path = target / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | SAMPLING))
    return target


def converted(folder: Path, tiktoken: Path) -> Path:
    """Convert a model of the first generation; returns the new folder."""
    from qwen_job.models.convert import convert_folder

    convert_folder(qwen1(folder, tiktoken), folder / "model")
    return folder / "model"


def quiet(scratch: Path) -> dict[str, str]:
    """Return the environment of a vLLM that asks no network, and leaves nothing outside ``scratch``."""
    own = {"VLLM_CACHE_ROOT": str(scratch), "VLLM_CONFIG_ROOT": str(scratch), "VLLM_CPU_KVCACHE_SPACE": "1"}
    own |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch), "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1"}
    return {**os.environ, **own, "PYTHONPATH": str(ON_CPU)}


def answered(script: str, work: Any, scratch: Path) -> Any:
    """Run a script of this folder in vLLM's environment; returns its answers to ``work``."""
    (scratch / "work.json").write_text(json.dumps(work), encoding="utf-8")
    command = [PYTHON, str(Path(__file__).with_name(script)), "work.json", "answers.json"]
    done = subprocess.run(command, cwd=scratch, env=quiet(scratch), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads((scratch / "answers.json").read_text(encoding="utf-8"))


@contextmanager
def serve(folder: Path, scratch: Path, dtype: str = "float32") -> Iterator[str]:
    """Start vLLM on ``folder`` in ``dtype``, without remote code and with the options that the model card gives.

    Yields its address, and ends it with all it started.
    """
    port = free_port()
    # Not the command vllm: that of the package vllm-cpu 0.32 asks for the version of a package vllm, and ends.
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", dtype, "--enforce-eager", *serving_of(folder).flags]
    log = scratch / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, cwd=scratch, env=quiet(scratch), start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(process, address, log)
        yield address
    finally:
        _end(process)


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(address + "/health", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"vLLM does not serve the folder:\n{log.read_text(errors='replace')[-6000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(30)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


@pytest.fixture(scope="session", params=EXACT + ROUNDED)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a trained Qwen2, of a Qwen3 with tied weights, of one with its own template, and of Qwen-1s.

    Those two are trained from Qwen-1, and converted without training. Then a trained Qwen3-MoE and a Qwen3.5.
    """
    scratch, kind = tmp_path_factory.mktemp(request.param), request.param
    system_prompt = {"qwen2": "你是小助手。", "qwen3": "", "template": "请简短。"}.get(
        kind, "You are a helpful assistant."
    )
    if kind == "converted":
        folder = converted(scratch, request.getfixturevalue("qwen_tiktoken"))
    elif kind == "qwen1":
        start = str(qwen1(scratch, request.getfixturevalue("qwen_tiktoken")))
        folder = trained(scratch, system_prompt, model__name=start, model__source="local")
    elif kind == "template":
        tiny.conversations(scratch / "data.json", 12)
        texts = [(scratch / "data.json").read_text("utf-8"), *TEXTS]
        start = str(templated_model(scratch / "own", "qwen3", texts * 2, **QWEN3 | {"max_position_embeddings": 1024}))
        folder = trained(scratch, system_prompt, model__name=start, model__source="local")
    else:
        folder = trained(scratch, system_prompt, shape=SHAPES[kind])
    with serve(folder, scratch, "bfloat16" if kind in ROUNDED else "float32") as address:
        yield Server(folder, system_prompt, address)
