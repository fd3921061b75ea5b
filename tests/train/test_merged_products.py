"""One product for q, k and v, and one for gate and up: the same numbers from the model's own weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")
from benchmarks.gpu_day.merged import merged_feed_forward, merged_layers, one_product, side_by_side, whole  # noqa: E402

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 64}  # fmt: skip


def model(flat: bool) -> Any:
    """Return a model, its weights one after the other in one buffer, as ZeRO-2 has them, or each for itself."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    made = Qwen2ForCausalLM(Qwen2Config(**SHAPE, attn_implementation="sdpa")).double().train()
    if flat:
        matrices = [weight for weight in made.parameters() if weight.dim() == 2]
        buffer = torch.cat([weight.detach().reshape(-1) for weight in matrices])
        parts = buffer.split([weight.numel() for weight in matrices])
        for weight, part in zip(matrices, parts, strict=True):
            weight.data = part.view_as(weight)
    return made


def step(made: Any, around: AbstractContextManager[None]) -> tuple[Any, dict[str, Any]]:
    ids = torch.arange(20).reshape(2, 10)
    with around:
        logits = made(input_ids=ids, use_cache=False).logits
        logits.square().mean().backward()
    return logits.detach(), {name: weight.grad for name, weight in made.named_parameters()}


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("around", [merged_layers, merged_feed_forward])
def test_logits_and_every_gradient_are_those_of_separate_products(
    around: Callable[[], AbstractContextManager[None]], flat: bool
) -> None:
    (plain, slopes), (ours, mine) = step(model(flat), nullcontext()), step(model(flat), around())
    torch.testing.assert_close(ours, plain)
    assert mine.keys() == slopes.keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(mine[name], slope, msg=name)


def test_weights_side_by_side_are_one_view_and_no_copy() -> None:
    attention = model(flat=True).model.layers[1].self_attn
    weights = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    assert side_by_side(weights)
    assert whole(weights).data_ptr() == weights[0].data_ptr() and whole(weights).shape == (64, 32)
    assert torch.equal(whole(weights), torch.cat(weights))
    assert not side_by_side(weights[::-1])
    assert torch.equal(whole(weights[::-1]), torch.cat(weights[::-1]))


def test_the_model_and_its_names_stay() -> None:
    before, after = model(flat=True), model(flat=True)
    step(after, merged_layers())
    assert all(torch.equal(before.state_dict()[name], value) for name, value in after.state_dict().items())
    assert before.state_dict().keys() == after.state_dict().keys()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it
def test_a_compiler_takes_it_as_it_is() -> None:
    """In a process of its own: what other tests have compiled and set would change what the compiler makes."""
    code = "from tests.train.test_merged_products import compare_compiled; compare_compiled()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=600)


def compare_compiled() -> None:
    torch.library.opcheck(one_product, (torch.randn(3, 4), [torch.randn(2, 4), torch.randn(5, 4)]))
    made = model(flat=True)
    compiled = model(flat=True)
    for layer in compiled.model.layers:
        layer.compile(backend="aot_eager")
    torch.testing.assert_close(step(compiled, merged_layers()), step(made, nullcontext()))
