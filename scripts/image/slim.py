"""Remove what no job uses from the image's environment: test suites, C++ test programs, static libraries, headers.

    slim.py ENVIRONMENT COMPILER        COMPILER is 1 where jobs compile

torch's headers stay where Inductor compiles C++ for a CPU. For a GPU, Triton compiles C with headers of its own.

``torch.testing`` stays (torch imports it), and so does ``torch/bin/torch_shm_manager`` (shared-memory tensors).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

# Below site-packages. A pattern that matches nothing is fine: builds of torch differ.
ALWAYS = [
    "torch/test",
    "torch/bin/*[Tt]est*",
    "torch/bin/protoc*",
    "torch/bin/upgrader_models",
    "torch/bin/*.ptl",
    "torch/lib/*.a",
    "nvidia/**/lib/*.a",
    "sympy/**/tests",
    "networkx/**/tests",
    "numpy/**/tests",
    "torchgen/packaged",
    "**/__pycache__",
]
HEADERS = ["torch/include", "torch/share/cmake", "deepspeed/ops/csrc", "numpy/_core/include", "nvidia/**/include"]


def remove(site_packages: Path, patterns: list[str]) -> int:
    """Remove every match of ``patterns`` and return the bytes that this freed."""
    freed = 0
    for pattern in patterns:
        for path in sorted(site_packages.glob(pattern)):
            if path.is_dir():
                freed += sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
                shutil.rmtree(path)
            elif path.exists():
                freed += path.lstat().st_size
                path.unlink()
    return freed


def strip_debug(site_packages: Path) -> None:
    """Drop the debug tables of DeepSpeed's operators, which it compiles with -g."""
    for library in site_packages.glob("deepspeed/**/*_op*.so"):
        subprocess.run(["strip", "--strip-debug", str(library)], check=True)


def main(environment: Path, with_compiler: bool) -> None:
    for site_packages in environment.glob("lib/python3*/site-packages"):
        keeps_headers = with_compiler and not (site_packages / "triton").is_dir()
        patterns = ALWAYS if keeps_headers else ALWAYS + HEADERS
        strip_debug(site_packages)
        print(f"slim: {remove(site_packages, patterns) / 1e6:.0f} MB removed from {site_packages}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "1")
