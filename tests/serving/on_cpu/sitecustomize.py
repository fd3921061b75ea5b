"""Let torchvision be imported beside a torch for CPUs. Python runs this when its folder is on PYTHONPATH.

vLLM's module of Qwen3.5 imports torchvision, also for a model of text alone. The usual build of torchvision is for
CUDA: its operators do not load beside a torch for CPUs, and ``import torchvision`` ends with "operator torchvision::nms
does not exist". With these two declared, without code, its Python is imported. A build that fits is left as it is.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept: list[object] = []  # an operator goes when its library does


class _BeforeTorchvision:
    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name)
        if spec is not None and spec.origin:
            _declare(Path(spec.origin).parent)
        return spec


def _declare(package: Path) -> None:
    import torch

    try:
        for path in package.glob("_C*.so"):
            torch.ops.load_library(path)
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(name + _SCHEMA)
        _kept.append(library)


sys.meta_path.insert(0, _BeforeTorchvision())
