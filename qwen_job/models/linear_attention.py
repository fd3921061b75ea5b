"""The functions of transformers' linear attention, so that one process can run them on a GPU and on a CPU.

transformers chooses between torch and flash-linear-attention once, when it is imported: with that package installed, a
model on the CPU (the export's check) would call a kernel of the GPU.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

# Functions of transformers that it takes from other packages; the first argument tells where they run.
_FUNCTIONS = (
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "torch_chunk_gated_delta_rule",
    "torch_recurrent_gated_delta_rule",
)
_MARK = "qwen_job_by_device"


def home_of(model: Any) -> ModuleType:
    """Return the module of transformers that defines a model's class, and calls the functions by their names there."""
    return sys.modules[type(model).__module__]


def choose_by_device(home: ModuleType) -> None:
    """Make the functions of ``home`` take torch's own formulas for tensors on a CPU; safe to call again."""
    for name in _FUNCTIONS:
        function = getattr(home, name, None)
        if function is not None and not hasattr(function, _MARK):
            setattr(home, name, _by_device(function))


def torch_formula(home: ModuleType, name: str) -> Callable[..., Any]:
    """Return a function of ``home`` as it is written in torch, whatever is installed."""
    return _innermost(getattr(home, name))


def _innermost(function: Callable[..., Any]) -> Callable[..., Any]:
    while (inner := getattr(function, "__wrapped__", None)) is not None:
        function = inner
    return function


def _by_device(function: Callable[..., Any]) -> Callable[..., Any]:
    plain = _innermost(function)

    @functools.wraps(function)
    def chosen(first: Any, *arguments: Any, **options: Any) -> Any:
        return (plain if first.device.type == "cpu" else function)(first, *arguments, **options)

    setattr(chosen, _MARK, True)
    return chosen
