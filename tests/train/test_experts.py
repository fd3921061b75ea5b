"""Mixtures of experts: every way of training gives what transformers gives alone; a run survives a kill, and exports.

About four minutes of one core: one process and two that try every way, and three runs, each killed, resumed, and
resumed on other ranks.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.tiny_models import TINY
from tests.train import tiny

pytestmark = [pytest.mark.train, pytest.mark.slow]

torch = pytest.importorskip("torch")
from qwen_job.run.manifest import Checkpoint, check  # noqa: E402
from qwen_job.train.universal import make_universal  # noqa: E402
from tests.train.expert_worker import WAYS, Way, ways  # noqa: E402

SETTINGS: dict[str, Any] = {
    "router_aux_loss_coef": 0.01,
    "training__gradient_accumulation_steps": 4,
    "training__max_steps": 10,
    "training__save_steps": 4,
    "training__save_total_limit": 9,
}


Results = dict[Any, Any]


@pytest.fixture(scope="module")
def results_on(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Results]:
    """Return what every way that a number of ranks can take, and the reference, came to; computed once each."""

    @cache
    def compute(ranks: int) -> Results:
        output: Path = tmp_path_factory.mktemp("experts") / "results.pt"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        done = subprocess.run(
            [*command, "-m", "tests.train.expert_worker", str(output)],
            env=tiny.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: Results = torch.load(output)
        return found

    return compute


on_one_and_two_ranks = pytest.mark.parametrize("ranks", [1, 2])


@pytest.mark.parametrize(("ranks", "way"), [(ranks, way) for ranks in (1, 2) for way in ways(ranks)], ids=str)
def test_losses_balance_and_weights_are_those_of_one_unpacked_process(
    results_on: Callable[[int], Results], ranks: int, way: Way
) -> None:
    results = results_on(ranks)
    ours, alone = results[tuple(way)], results[way.shape, way.coefficient]
    # Of all gradients before clipping: Adam would hide a wrong factor.
    assert ours["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    assert ours["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    assert [step["router_aux_loss"] for step in ours["routed"]] == pytest.approx(alone["aux"], abs=1e-5)
    # Adam makes much of the rounding of gradients near zero, of which linear attention has more.
    limit = 1e-3 if "3_5" in way.shape else 1e-4
    torch.testing.assert_close(ours["weights"], alone["weights"], rtol=0, atol=limit)


@on_one_and_two_ranks
def test_the_balance_changes_what_is_learned(results_on: Callable[[int], Results], ranks: int) -> None:
    results = results_on(ranks)
    off, on = results["qwen3_moe", 0.0], results["qwen3_moe", 0.1]
    assert off["losses"][0] == on["losses"][0] and abs(off["losses"][2] - on["losses"][2]) > 1e-3


@on_one_and_two_ranks
def test_loads_are_shares_of_the_tokens_and_entropy_is_at_most_that_of_chance(
    results_on: Callable[[int], Results], ranks: int
) -> None:
    results = results_on(ranks)
    for step in results[tuple(WAYS[0])]["routed"]:
        assert 0 <= step["expert_load_min"] < 1 < step["expert_load_max"] <= 2
        assert 0 < step["router_entropy"] < torch.tensor(4.0).log()


@on_one_and_two_ranks
def test_zero_3_gathers_the_block_of_every_family_whole(results_on: Callable[[int], Results], ranks: int) -> None:
    results = results_on(ranks)
    leaves = {way.shape: results[tuple(way)]["leaves"] for way in WAYS if way.stage == 3}
    assert leaves == {"qwen3_moe": 2, "qwen2_moe": 1, "qwen3_5_moe_text": 4}


class Run(NamedTuple):
    """A run on two ranks, and what it is resumed on elsewhere; ``split``: ranks that split the experts."""

    shape: str
    stage: int
    split: int
    elsewhere: tuple[int, int]  # ranks, of which so many split the experts
    tensors: int  # of the exported model


RUNS = [
    Run("qwen3_moe", 3, 1, (1, 1), 45),
    Run("qwen2_moe", 2, 2, (1, 1), 41),
    Run("qwen3_5_moe_text", 3, 2, (2, 1), 72),
]


@pytest.fixture(scope="module", params=RUNS, ids=str)
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A run on two ranks, one of which was killed after step 6, and which was resumed from step 4."""
    run: Run = request.param
    folder = tmp_path_factory.mktemp("mixture") / "run"
    train_yaml = tiny.write_run(folder, run.stage, shape=TINY[run.shape], split=run.split, **SETTINGS)
    process = tiny.start(train_yaml)
    tiny.wait_for_step(folder, 6, process, seconds=300)
    tiny.workers(process)[1].send_signal(signal.SIGKILL)
    assert process.wait(120) == 128 + signal.SIGKILL, process.communicate()[0]
    code, output = tiny.run(train_yaml)
    assert code == 0 and "resuming from step-4" in output, output
    assert "router_aux_loss_coef: 0.01: the balance of a step's experts is exact, so its 4 micro-batches" in output
    return run, folder


def test_a_killed_run_repeats_its_steps_bit_for_bit(killed: tuple[Run, Path]) -> None:
    steps = tiny.metrics(killed[1], "step")
    repeated = [line for line in steps if sum(other["step"] == line["step"] for other in steps) == 2]
    assert {line["step"] for line in repeated} >= {5, 6}
    figures = ("loss", "grad_norm", "expert_load_max", "expert_load_min", "router_entropy", "router_aux_loss")
    for line in repeated:
        twin = next(other for other in reversed(steps) if other["step"] == line["step"])
        assert [line[name] for name in figures] == [twin[name] for name in figures]


def test_every_tensor_is_exported_under_its_name_on_the_hub(killed: tuple[Run, Path]) -> None:
    from safetensors.torch import load_file

    from qwen_job.facts.weights import expected_shapes
    from qwen_job.models.completeness import check_folder

    run, folder = killed
    config = check_folder(folder / "model")
    assert (config["num_experts"], "num_local_experts" in config) == (4, False)
    exported = load_file(folder / "model" / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in exported.items()} == expected_shapes(config)
    found = check(folder / "checkpoints" / "step-10")
    assert isinstance(found, Checkpoint) and found.expert_parallel_size == run.split
    compared = 0
    for name, tensor in master_weights(found):
        for key, part in [(name, tensor)] if name in exported else each_expert(name, tensor):
            assert torch.equal(exported[key].flatten(), part.flatten()), key
            compared += 1
    assert compared == len(exported) == run.tensors


def master_weights(found: Checkpoint) -> Iterator[tuple[str, Any]]:
    """Yield the master weights of a checkpoint as DeepSpeed's own tools put them together; some are flat."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    if found.expert_parallel_size == 1:
        yield from get_fp32_state_dict_from_zero_checkpoint(str(found.path), f"global_step{found.step}").items()
        return
    for place in (make_universal(found, 1) / f"global_step{found.step}_universal" / "zero").iterdir():
        if place.is_dir():
            tensor = torch.load(place / "fp32.pt", weights_only=False)
            yield place.name, tensor["param"] if isinstance(tensor, dict) else tensor


def each_expert(name: str, tensor: Any) -> list[tuple[str, Any]]:
    """Return a tensor of transformers' model as those of the hub's files."""
    place, _, kind = name.rpartition(".")
    if kind == "down_proj":
        return [(f"{place}.{number}.down_proj.weight", one) for number, one in enumerate(tensor)]
    if kind == "gate_up_proj":
        halves = [(number, one.chunk(2)) for number, one in enumerate(tensor)]
        return [
            (f"{place}.{number}.{name}.weight", half)
            for number, both in halves
            for name, half in zip(("gate_proj", "up_proj"), both, strict=True)
        ]
    return [(name, tensor)]


def test_a_run_resumes_on_other_ranks_that_split_the_experts_otherwise(killed: tuple[Run, Path]) -> None:
    run, before = killed
    folder, (ranks, split) = before.parent / "elsewhere", run.elsewhere
    shutil.copytree(before, folder)
    (folder / "done.json").unlink()
    for step in (8, 10):
        shutil.rmtree(folder / "checkpoints" / f"step-{step}")
    changes = {**SETTINGS, "world_size": ranks, "training__gradient_accumulation_steps": 8 // ranks}
    train_yaml = tiny.write_run(folder, run.stage, shape=TINY[run.shape], split=split, **changes)
    code, output = tiny.run(train_yaml, ranks)
    assert code == 0, output
    assert ("saved on 2 ranks, and 1 are running" in output) == (ranks == 1), output
    assert ("experts were split over 2 ranks, now over 1" in output) == (run.split == 2), output
    expected, found = tiny.metrics(before, "step")[-6:], tiny.metrics(folder, "step")[-6:]
    for name in ("loss", "router_aux_loss", "router_entropy"):
        assert [line[name] for line in found] == pytest.approx([line[name] for line in expected], abs=2e-5), name
    assert json.loads((folder / "done.json").read_text())["step"] == 10


def test_the_trained_model_answers_and_is_evaluated(killed: tuple[Run, Path]) -> None:
    from qwen_job.infer.chat import Frame, open_chat
    from qwen_job.infer.evaluate import evaluate
    from qwen_job.infer.source import Sampling

    folder = killed[1]
    chat = open_chat(folder, Frame("You are a helpful assistant."), Sampling(max_new_tokens=4))
    assert "".join(piece.text for piece in chat.take("Count 3: a0 b1") or ())
    data = folder.parent / "data.json"
    result = evaluate(folder, data, samples=1, before=False, max_new_tokens=4, progress=print)
    losses = [line["loss"] for line in tiny.metrics(folder, "step")]
    assert result.conversations == 48 and result.after.loss < losses[0]


LEFT_OUT: dict[str, Any] = {
    "guards__on_nan": "skip",
    "data__eval_split": 0.2,
    "training__learning_rate": 0.2,  # so much that held-out loss rises
    "training__lr_scheduler_type": "constant",
    "training__max_steps": 5,
    "training__save_steps": 1,
    "training__eval_steps": 1,
    "training__save_total_limit": 9,
    "training__load_best_model_at_end": True,
}


def test_split_experts_leave_out_a_broken_row_and_end_with_the_best_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    losses: dict[int, list[float]] = {}
    for split in (1, 2):
        folder = tmp_path / f"split-{split}"
        train_yaml = tiny.write_run(folder, 2, shape=TINY["qwen3_moe"], split=split, **LEFT_OUT)
        code, output = tiny.run(train_yaml, change="nan 8")
        assert code == 0 and "rows [8]" in output and "skipped (1 so far)" in output, output
        losses[split] = [line["loss"] for kind in ("step", "eval") for line in tiny.metrics(folder, kind)]
    assert losses[2] == pytest.approx(losses[1], rel=1e-3)
    (taken,) = re.findall(r"taking the weights of (step-\d), the lowest held-out loss", output)
    best, exported = check(folder / "checkpoints" / taken), load_file(folder / "model" / "model.safetensors")
    assert isinstance(best, Checkpoint) and best.step < 5
    for name, tensor in master_weights(best):
        for key, part in each_expert(name, tensor):
            assert torch.equal(exported[key].flatten(), part.flatten()), key


def test_a_balance_without_experts_is_refused() -> None:
    from types import SimpleNamespace

    from qwen_job.errors import JobError
    from qwen_job.train.experts import coefficient_of

    dense: Any = torch.nn.Linear(2, 2)
    dense.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(model_type="qwen3"))
    with pytest.raises(JobError, match=r"train\.router_aux_loss_coef: 0\.1: qwen3 has no experts"):
        coefficient_of(dense, SimpleNamespace(router_aux_loss_coef=0.1))  # type: ignore[arg-type]
    assert coefficient_of(dense, SimpleNamespace(router_aux_loss_coef=None)) == 0  # type: ignore[arg-type]


def test_experts_one_by_one_are_reported_on_gpus_without_grouped_products(monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen_job.train.experts import expert_notes

    class TopKRouter(torch.nn.Linear):
        pass

    gpu, mixture = torch.device("cuda", 0), torch.nn.Sequential(TopKRouter(2, 2))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    assert "need compute capability 8.0: computed one by one" in expert_notes(mixture, 0.0, 8, gpu)[0]
    assert expert_notes(torch.nn.Linear(2, 2), 0.0, 8, gpu) == []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert expert_notes(mixture, 0.0, 8, gpu) == expert_notes(mixture, 0.1, 1, gpu) == []
