"""What some tests need beyond the launcher's environment, and the rule for leaving it out.

``make check`` has neither the training stack nor the Kubernetes judges: a test module that imports one of them is
skipped as it is collected. An import while a test runs is not forgiven: if the launcher itself imports torch or numpy,
its tests fail.

``QWEN_JOB_NO_SKIPS`` names the needs that a machine must meet (``training,slurm``, or ``all``): a test skipped for one
of them then fails the run. Every skip states its need first: ``needs slurm: ...``.
"""

from __future__ import annotations

import importlib.abc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

import pytest

VARIABLE = "QWEN_JOB_NO_SKIPS"
PACKAGES = {
    "training": "accelerate deepspeed gigatoken numpy psutil safetensors tokenizers torch transformers",
    "tools": "yamllint",  # and hadolint, a program
    "formats": "pyarrow tiktoken zstandard",
    "remote": "aiohttp boto3 moto ossfs s3fs",
    "eval": "lm_eval",
    "kubernetes": "kubeflow kubeflow_trainer_api kubernetes kubernetes_validate",
}
NEEDS = (*PACKAGES, "slurm", "containers", "root", "compiler", "crds", "pythons", "browser", "registry", "site")
_NEED_OF = {package: need for need, packages in PACKAGES.items() for package in packages.split()}


def skip(need: str, why: str) -> NoReturn:
    """Skip the test, or the module that is being imported, for want of ``need`` (one of NEEDS)."""
    assert need in NEEDS
    pytest.skip(f"needs {need}: {why}", allow_module_level=True)


def forbidden(reason: str, named: str | None = None) -> bool:
    """Return whether $QWEN_JOB_NO_SKIPS (or ``named``) forbids a skip for that reason."""
    must = (os.environ.get(VARIABLE, "") if named is None else named).replace(",", " ").split()
    unknown = set(must) - {*NEEDS, "all"}
    if unknown:
        raise pytest.UsageError(f"{VARIABLE}: unknown: {' '.join(sorted(unknown))}; known: all {' '.join(NEEDS)}")
    need = reason.partition("needs ")[2].partition(":")[0]
    # Where anything is named, a skip that names no need is an oversight.
    return bool(must) and ("all" in must or need in must or need not in NEEDS)


class _Finder(importlib.abc.MetaPathFinder):
    """Asked last, for packages that no other finder has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = fullname.partition(".")[0]
        if package in _NEED_OF and package not in sys.modules:
            _forget_half_imported()
            skip(_NEED_OF[package], f"{package} is not installed")
        return None


def _forget_half_imported() -> None:
    """Drop the test modules under import: pytest leaves them in sys.modules, and the next import would take them."""
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__", "").startswith("tests."):
            sys.modules.pop(frame.f_globals["__name__"], None)


@contextmanager
def missing_packages_skip() -> Iterator[None]:
    """Skip, instead of failing, what imports a missing package of PACKAGES."""
    finder = _Finder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
