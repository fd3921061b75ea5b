"""A compiled layer is compiled once for all batches, whatever their documents; without a compiler, by Dynamo alone."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.train, pytest.mark.slow]

torch = pytest.importorskip("torch")
from qwen_job.train import attention as kernels  # noqa: E402
from qwen_job.train import loss as losses  # noqa: E402
from qwen_job.train.batches import collate  # noqa: E402
from qwen_job.train.kernels import use_lean_kernels, use_lean_rotation  # noqa: E402
from tests.train.test_batches import row  # noqa: E402
from tests.train.test_loss import tiny_model  # noqa: E402

# The lengths of the documents of each batch, one row of 400 tokens: their number and the longest change.
BATCHES = [(100, 50, 250), (300, 100), (30, 20, 350), (400,), (10, 10, 10, 370), (130, 130, 140), (90, 90, 90, 90, 40)]


@torch.library.custom_op("qwen_job_tests::packed", mutates_args=())
def packed(query: torch.Tensor, ends: torch.Tensor, longest: int) -> torch.Tensor:
    """Replace a GPU's kernel: opaque to the compiler, given the documents' ends and the longest one."""
    assert int(ends.diff().max()) <= longest
    return query.clone()


@packed.register_fake
def _(query: torch.Tensor, ends: torch.Tensor, longest: int) -> torch.Tensor:  # noqa: ARG001
    return torch.empty_like(query)


packed.register_autograd(lambda _, slope: (slope, None, None), setup_context=lambda *_, **__: None)


def kernel(query: Any, _key: Any, _value: Any, ends: Any, _ends: Any, longest: int, *_: Any, **__: Any) -> Any:
    """Have the arguments of torch's varlen kernel."""
    return packed(query, ends, longest)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it
def test_new_lengths_of_documents_compile_nothing_new(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setattr(kernels, "varlen_kernel", lambda: kernels.Kernel(kernel, frozenset()))
    model = tiny_model(kernels.implementation("varlen"), num_key_value_heads=4)
    use_lean_kernels(model)
    use_lean_rotation(model, wanted=False)
    for layer in model.model.layers:
        layer.compile(backend="eager")
    head = losses.LossHead(model, "chunked")
    counters.clear()
    compiled = []
    for lengths in BATCHES:
        batch = collate([(0, row(*lengths))], 0, 400)
        for name in ("input_ids", "targets"):
            batch[name].clamp_(max=63)  # the vocabulary of the tiny model
        inputs = kernels.inputs_for(batch, "varlen", torch.float32)
        head.loss(model, inputs, batch["targets"], batch["chosen"]).backward()
        compiled.append(counters["stats"]["unique_graphs"])
    # Once for the first batch's lengths, once more for any.
    assert compiled == [1] + [2] * (len(BATCHES) - 1)
    assert not counters["graph_break"]
