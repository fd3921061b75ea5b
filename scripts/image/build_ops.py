"""Build DeepSpeed with the operators that set.yaml names, and install it into the running environment.

    build_ops.py FOLDER        FOLDER holds set.yaml, deepspeed.lock and portable-cxx

Runs in the image's build stage. An operator that does not compile ends the build: a job must never find out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import yaml

TOOLS = Path("/opt/tools")
# set.yaml's name -> DeepSpeed's own switch; DS_BUILD_OPS=0 turns off every other operator.
SWITCHES = {
    "async_io": "DS_BUILD_AIO",
    "cpu_adam": "DS_BUILD_CPU_ADAM",
    "fused_adam": "DS_BUILD_FUSED_ADAM",
    "shm_comm": "DS_BUILD_SHM_COMM",
}


def torch_cuda_arch_list(architectures: list[str]) -> str:
    """``[sm_80, sm_90, compute_90]`` -> ``8.0;9.0+PTX``, the form of torch's extension builder."""
    ptx = {name.removeprefix("compute_") for name in architectures if name.startswith("compute_")}
    numbers = [name.removeprefix("sm_") for name in architectures if name.startswith("sm_")]
    return ";".join(f"{n[:-1]}.{n[-1]}{'+PTX' if n in ptx else ''}" for n in numbers)


def cuda_home(site_packages: Path) -> Path:
    """Return the CUDA toolkit that the nvidia-* packages unpacked, finished so that DeepSpeed can link against it."""
    nvcc = next(iter(sorted(site_packages.glob("nvidia/**/bin/nvcc"))), None)
    if nvcc is None:
        raise SystemExit("build_ops: no nvcc in the build tools: the set's build.in must name the CUDA compiler")
    return nvcc.parent.parent


def environment(settings: dict[str, object], folder: Path) -> dict[str, str]:
    ops = settings["ops"]
    architectures = settings["architectures"]
    assert isinstance(ops, list) and isinstance(architectures, list)
    tools = next(TOOLS.glob("lib/python3*/site-packages"))
    result = os.environ | {
        "CXX": str(folder / "portable-cxx"),
        "DS_BUILD_OPS": "0",
        # Without it the version would carry a git hash of whatever lies around.
        "DS_BUILD_STRING": "",
        "DS_ACCELERATOR": "cuda" if settings["cuda"] else "cpu",
        "MAX_JOBS": os.environ.get("MAX_JOBS") or str(os.cpu_count()),
        "PATH": f"{TOOLS / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(tools),
        **{SWITCHES[op]: "1" for op in ops},
    }
    if settings["cuda"]:
        home = cuda_home(tools)
        result |= {"CUDA_HOME": str(home), "TORCH_CUDA_ARCH_LIST": torch_cuda_arch_list(architectures)}
    return result


def main(folder: Path) -> None:
    settings = yaml.safe_load((folder / "set.yaml").read_text())
    wheels = folder / "wheels"
    pip = [sys.executable, "-m", "pip", "--no-cache-dir"]
    env = environment(settings, folder)
    lock = str(folder / "deepspeed.lock")
    build = ["wheel", "--no-deps", "--no-build-isolation", "--require-hashes", "-w", str(wheels), "-r", lock]
    subprocess.run([*pip, *build], env=env, check=True)
    (wheel,) = wheels.glob("deepspeed-*.whl")
    install = ["install", "--no-deps", "--no-index", "--no-compile", str(wheel)]
    subprocess.run([*pip, *install], env=env, check=True)
    built = {path.name.split(".")[0] for path in Path(sysconfig.get_path("purelib"), "deepspeed").rglob("*_op*.so")}
    missing = [op for op in settings["ops"] if not any(op in name for name in built)]
    if missing:
        raise SystemExit(f"build_ops: not compiled: {', '.join(missing)} (found {', '.join(sorted(built))})")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
