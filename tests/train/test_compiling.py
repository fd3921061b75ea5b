"""Layers are compiled once for every batch; where that fails, all ranks train uncompiled, and nothing was touched."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# As Dynamo looks at tensors, torch warns about what it looks at.
pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore:The .grad attribute")]

torch = pytest.importorskip("torch")
from torch._dynamo.utils import counters  # noqa: E402

from qwen_job.errors import EnvironmentFault  # noqa: E402
from qwen_job.run.config import TrainConfig, parse_config  # noqa: E402
from qwen_job.toolchain import missing_tool, refuse_without_compiler  # noqa: E402
from qwen_job.train import attention as kernels  # noqa: E402
from qwen_job.train import kernel_cache  # noqa: E402
from qwen_job.train.batches import collate  # noqa: E402
from qwen_job.train.compiling import Setting, compile_layers  # noqa: E402
from qwen_job.train.loss import LossHead, Objective  # noqa: E402
from qwen_job.train.ranks import Ranks  # noqa: E402
from qwen_job.train.rendezvous import Place  # noqa: E402
from qwen_job.train.runlog import RunLog  # noqa: E402
from tests.support import optional  # noqa: E402
from tests.train import tiny  # noqa: E402
from tests.train.test_batches import row  # noqa: E402
from tests.train.test_loss import tiny_model  # noqa: E402

LENGTH = 32


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin each test without compiled code and with an empty cache, and leave torch's settings as they were."""
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "kernels"))
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    torch._dynamo.reset()
    counters.clear()
    with (
        torch._dynamo.config.patch(suppress_errors=False),
        torch.compiler.config.patch(dynamic_sources=""),
        torch.fx.experimental._config.patch(use_duck_shape=True),
    ):
        yield
    torch._dynamo.reset()


def by_documents(q: Any, k: Any, v: Any, ends: Any, _ends: Any, longest: int, _longest: int, **_: Any) -> Any:
    """Attend as torch's varlen_attn does, on a CPU; [T, heads, D] each."""
    numbers = torch.searchsorted(ends, torch.arange(q.shape[0]), right=True)
    positions = torch.arange(q.shape[0])
    distance = positions[:, None] - positions[None, :]
    mask = (numbers[:, None] == numbers[None, :]) & (distance >= 0) & (distance < longest)
    parts = (part.transpose(0, 1)[None] for part in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask)
    return out[0].transpose(0, 1)


def config_of(folder: Path, backend: str, **changes: Any) -> TrainConfig:
    values, _ = tiny.settings(folder, attention="varlen", data__max_length=LENGTH, torch_compile=True, **changes)
    values["training"]["torch_compile_backend"] = backend
    values["training"]["per_device_train_batch_size"] = 2
    return parse_config(values, "train.yaml")


class Case:
    """A model and its objective, compiled with a backend for a run of one rank."""

    def __init__(self, tmp_path: Path, backend: str) -> None:
        (tmp_path / "config.json").write_text("{}")
        kernels.implementation("varlen")
        self.model: Any = tiny_model(kernels.VARLEN, num_key_value_heads=4)
        self.objective = Objective(LossHead(self.model, "none"), "varlen", torch.float32, None)
        self.config = config_of(tmp_path / "run", backend)
        self.log = RunLog(self.config.output_dir, active=True)
        self.folder = tmp_path

    def loss(self, *documents: list[int]) -> Any:
        """Return the loss of one row per argument, which holds documents of these lengths."""
        rows = [(number, row(*lengths)) for number, lengths in enumerate(documents)]
        return self.objective(self.model, collate(rows, 0, LENGTH))

    def compile(self, *rehearsals: Callable[[], Any], step: int = 0) -> bool:
        place, ranks = Place(0, 1, 0, "127.0.0.1", 0), Ranks(0, 1, torch.device("cpu"))
        setting = Setting(self.config, {}, place, torch.distributed.HashStore(), ranks, self.log)
        return compile_layers(setting, self.model, self.folder, [*rehearsals], step)


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = frozenset({"scale", "window_size", "enable_gqa"})
    monkeypatch.setattr(kernels, "varlen_kernel", lambda: kernels.Kernel(by_documents, taken))


@pytest.mark.usefixtures("on_a_cpu")
def test_one_compilation_serves_batches_of_any_documents(tmp_path: Path) -> None:
    case = Case(tmp_path, "aot_eager")
    assert case.compile(lambda: case.loss([20, 12], [32]))
    compiled = counters["stats"]["unique_graphs"]
    assert compiled == 1
    for documents in ([4, 5, 6, 17], [1, 31]), ([32], [32]), ([2] * 16, [3] * 10), ([30, 2], [16, 16]):
        case.loss(*documents).backward()
    assert counters["stats"]["unique_graphs"] == compiled


@pytest.mark.usefixtures("on_a_cpu")
def test_compiling_leaves_weights_gradients_and_random_state_alone(tmp_path: Path) -> None:
    case = Case(tmp_path, "aot_eager")
    before = {name: weight.clone() for name, weight in case.model.named_parameters()}
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    case.compile(lambda: case.loss([20, 12], [32]) + torch.rand(()) * 0)
    assert torch.equal(torch.get_rng_state(), expected)
    assert all(weight.grad is None for weight in case.model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in case.model.named_parameters())


@pytest.mark.usefixtures("on_a_cpu")
def test_a_held_out_batch_is_compiled_before_training_too(tmp_path: Path) -> None:
    case = Case(tmp_path, "aot_eager")
    case.compile(lambda: case.loss([20, 12], [32]), lambda: case.loss([10, 22]))
    compiled = counters["stats"]["unique_graphs"]
    case.model.eval()
    with torch.no_grad():
        case.loss([5, 5, 5])
    assert counters["stats"]["unique_graphs"] == compiled


@pytest.mark.usefixtures("on_a_cpu")
def test_a_compilation_that_fails_leaves_the_layers_as_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch._dynamo.register_backend(_failing, name="failing")
    case = Case(tmp_path, "failing")
    expected = case.loss([20, 12], [32]).item()
    assert not case.compile(lambda: case.loss([20, 12], [32]))
    assert case.loss([20, 12], [32]).item() == expected
    said = [line for line in capsys.readouterr().err.splitlines() if "torch_compile" in line]
    assert len(said) == 1
    assert "layers are not compiled: BackendCompilerFailed: " in said[0] and "this compiler is broken" in said[0]


def _failing(_graph: Any, _inputs: Any) -> Any:
    raise RuntimeError("this compiler is broken")


@pytest.mark.usefixtures("on_a_cpu")
def test_running_out_of_memory_is_not_taken_for_a_failed_compilation(tmp_path: Path) -> None:
    def full() -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Case(tmp_path, "aot_eager").compile(full)


@pytest.mark.usefixtures("on_a_cpu")
def test_a_resumed_attempt_reports_that_layers_are_no_longer_compiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case(tmp_path, "aot_eager")
    assert case.compile(lambda: case.loss([20, 12], [32]))
    case.config = config_of(tmp_path / "run", "failing")
    assert not case.compile(lambda: case.loss([20, 12], [32]), step=8)
    assert "from step 9 on, layers are not compiled, and were before" in capsys.readouterr().err
    recorded = [line["compiled"] for line in tiny.metrics(tmp_path / "run", "compile")]
    assert recorded == [True, False]


@pytest.mark.usefixtures("on_a_cpu")
def test_no_room_for_kernels_trains_uncompiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_cache, "_ROOM_BYTES", 2**60)
    case = Case(tmp_path, "aot_eager")
    assert not case.compile(lambda: case.loss([20, 12], [32]))
    assert "layers are not compiled: no room for compiled kernels" in capsys.readouterr().err
    assert case.loss([20, 12], [32]).isfinite()


@pytest.mark.usefixtures("on_a_cpu")
@pytest.mark.parametrize(
    ("capability", "compiler", "why"),
    [
        ((9, 0), "no-such-compiler", "no-such-compiler is missing"),
        ((7, 0), "gcc", "compute capability 7.0 < 8.0"),
    ],
)
def test_auto_trains_uncompiled_where_the_node_cannot_compile(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    capability: tuple[int, int],
    compiler: str,
    why: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setenv("CC", compiler)
    case = Case(tmp_path, "aot_eager")
    case.config = case.config.model_copy(update={"torch_compile": "auto", "device": "cuda"})
    refuse(case.config)
    assert not case.compile(lambda: case.loss([20, 12], [32]))
    assert capsys.readouterr().err == f"train.torch_compile: auto: layers are not compiled: {why}\n"


def refuse(config: TrainConfig) -> None:
    """Do what a trainer does before it loads the model."""
    refuse_without_compiler(config.torch_compile, config.fused_loss, config.device)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"torch_compile": True}, "true"), ({"torch_compile": "auto", "fused_loss": "liger"}, "liger")],
)
def test_a_setting_that_compiles_is_refused_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], named: str
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = config_of(tmp_path / "run", "inductor").model_copy(update=changes)
    with pytest.raises(EnvironmentFault, match=f"{named}: no-such-compiler is missing: use the image"):
        refuse(config)


@pytest.mark.timeout(300)
def test_one_rank_that_cannot_compile_stops_all_of_them(tmp_path: Path) -> None:
    # Two processes that import torch: ten seconds.
    (tmp_path / "config.json").write_text("{}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.train.compile_worker", str(tmp_path)],
        capture_output=True, text=True, env=tiny.environment(TMPDIR=str(tmp_path)), timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert [result["compiled"] for result in results] == [False, False]
    assert results[0]["loss"] == results[0]["expected"] and results[1]["loss"] == results[1]["expected"]
    assert done.stderr.count("layers are not compiled: BackendCompilerFailed") == 1
    assert "(rank 1 on " in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_restart_on_another_node_compiles_nothing(tmp_path: Path) -> None:
    # Inductor's C++, compiled for real on two ranks: a minute.
    if missing_tool("cpu"):
        optional.skip("compiler", "apt-get install g++ libpython3-dev")
    run, outputs = tmp_path / "run", []
    for node, steps in enumerate((2, 4)):
        resume = "extend" if node else "auto"
        train = tiny.write_run(run, torch_compile=True, training__max_steps=steps, resume=resume)
        code, output = tiny.run(train, timeout=800, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / f"node-{node}"))
        assert code == 0, output
        outputs.append(output)
    first, second = tiny.metrics(run, "compile")
    assert first["graphs"] > 0 and first["compiled"]
    assert second["graphs"] == 0 and second["found"] == first["graphs"] and second["compiled"]
    assert second["seconds"] < first["seconds"]
    assert "layers were compiled in " in outputs[0]
    assert f"compiled layers were loaded in {second['seconds']:.1f} s from {run}/kernels.zip" in outputs[1]
    eager = tmp_path / "eager"
    assert tiny.run(tiny.write_run(eager, training__max_steps=2))[0] == 0
    for compiled, plain in zip(tiny.metrics(run, "step"), tiny.metrics(eager, "step"), strict=False):
        assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-5)
