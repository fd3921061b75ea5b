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


def cuda_home(site_packages: Path) -> Path | None:
    """Return the CUDA toolkit that the nvidia-* packages unpacked, made complete; None where they hold no nvcc.

    NVIDIA's packages for CUDA 12 hold ptxas alone: DeepSpeed then builds its host-side operators without CUDA.
    """
    nvcc = next(iter(sorted(site_packages.glob("nvidia/**/bin/nvcc"))), None)
    if nvcc is None:
        return None
    home = nvcc.parent.parent
    libraries = home / "lib"
    if not (home / "lib64").exists():
        (home / "lib64").symlink_to("lib")
    for runtime in libraries.glob("libcudart.so.*"):
        (libraries / "libcudart.so").unlink(missing_ok=True)
        (libraries / "libcudart.so").symlink_to(runtime.name)
    # The driver's library is on the GPU node only; linking against async_io needs its name, not its code.
    stub = ["gcc", "-shared", "-o", str(libraries / "libcuda.so"), "-Wl,-soname,libcuda.so.1", "-x", "c", "/dev/null"]
    subprocess.run(stub, check=True)
    return home


def environment(settings: dict[str, object], folder: Path) -> dict[str, str]:
    ops = settings["ops"]
    architectures = settings["architectures"]
    assert isinstance(ops, list) and isinstance(architectures, list)
    tools = next(TOOLS.glob("lib/python3*/site-packages"))
    result = os.environ | {
        "CXX": str(folder / "portable-cxx"),
        "DS_BUILD_OPS": "0",
        # DeepSpeed compiles one file after another unless told otherwise.
        "DS_ENABLE_NINJA": "1",
        # Without it the version would carry a git hash of whatever lies around.
        "DS_BUILD_STRING": "",
        "DS_ACCELERATOR": "cuda" if settings["cuda"] else "cpu",
        "MAX_JOBS": os.environ.get("MAX_JOBS") or str(os.cpu_count()),
        "PATH": f"{TOOLS / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(tools),
        **{SWITCHES[op]: "1" for op in ops},
    }
    if settings["cuda"]:
        result["TORCH_CUDA_ARCH_LIST"] = torch_cuda_arch_list(architectures)
        if home := cuda_home(tools):
            result["CUDA_HOME"] = str(home)
            # The libraries that torch itself requires came with their headers; nvcc's own stand before them.
            installed = Path(sysconfig.get_path("purelib"), "nvidia")
            result["CPATH"] = os.pathsep.join(map(str, sorted(installed.glob("*/include"))))
        elif "fused_adam" in ops:
            raise SystemExit("build_ops: fused_adam needs nvcc: the set's build.in must name the CUDA compiler")
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
