"""What can be held about the image without building it: lint, locks, sets. `make image-test` builds and runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support import optional

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts" / "image"
SETS = sorted(path.parent.name for path in (ROOT / "qwen_job" / "facts" / "image").glob("*/set.yaml"))
SHELL = [path for path in SCRIPTS.iterdir() if path.is_file() and path.suffix != ".py"]


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not found:
        optional.skip("tools", f"{name} is not installed")
    return found


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | environment
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60)


def locks(*arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, root / "scripts" / "image" / "locks.py", *arguments)


def copy_of_checkout(target: Path) -> Path:
    shutil.copytree(ROOT / "qwen_job" / "facts" / "image", target / "qwen_job" / "facts" / "image")
    shutil.copytree(SCRIPTS, target / "scripts" / "image")
    shutil.copy(ROOT / "pyproject.toml", target)
    return target


def test_hadolint_finds_nothing() -> None:
    assert run(tool("hadolint"), "Dockerfile").stdout == ""


def test_shellcheck_finds_nothing() -> None:
    assert run(tool("shellcheck"), "-x", *SHELL).stdout == ""


@pytest.mark.parametrize("name", SETS)
def test_locks_are_current(name: str) -> None:
    done = locks("check", name)
    assert done.returncode == 0, done.stdout


def test_a_changed_requirement_makes_the_lock_stale(tmp_path: Path) -> None:
    root = copy_of_checkout(tmp_path)
    with (root / "qwen_job" / "facts" / "image" / "cpu" / "requirements.in").open("a") as inputs:
        inputs.write("pandas\n")
    done = locks("check", "cpu", root=root)
    assert done.returncode == 1
    assert "cpu/requirements.lock: older than its python inputs: run 'make image-lock'" in done.stdout


def test_a_lock_without_a_hash_is_refused(tmp_path: Path) -> None:
    root = copy_of_checkout(tmp_path)
    lock = root / "qwen_job" / "facts" / "image" / "cpu" / "requirements.lock"
    lines = lock.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("click=="))
    stop = next(number for number in range(start + 1, len(lines)) if not lines[number].startswith(" "))
    lock.write_text("\n".join([*lines[:start], lines[start].removesuffix(" \\"), *lines[stop:]]) + "\n")
    assert "click==" in locks("check", "cpu", root=root).stdout


def test_an_unknown_set_names_the_known_ones() -> None:
    done = run(SCRIPTS / "build", "a100")
    assert done.returncode == 2
    assert done.stderr == f"image: unknown SET 'a100': one of {' '.join(SETS)}\n"
    assert locks("check", "a100").returncode == 2


@pytest.mark.parametrize("name", SETS)
def test_a_set_says_everything_that_the_build_reads(name: str) -> None:
    values = yaml.safe_load((ROOT / "qwen_job" / "facts" / "image" / name / "set.yaml").read_text())
    keys = {"name", "description", "cuda", "minimum_driver", "architectures", "gpus", "ops", "compiler"}
    assert set(values) == keys
    assert values["name"] == name
    assert (values["cuda"] is None) == (values["architectures"] == []) == (values["minimum_driver"] is None)


def test_each_stage_that_installs_packages_takes_the_options_for_them() -> None:
    """Not every builder hands a stage's arguments on to the stages that are built on it."""
    stages = (ROOT / "Dockerfile").read_text().split("\nFROM ")[1:]
    installing = [stage for stage in stages if "/apt-install /" in stage]
    assert len(installing) >= 2
    for stage in installing:
        declared = re.findall(r"^ARG (\w+)", stage, re.MULTILINE)
        assert {"DEBIAN_SNAPSHOT", "DEBIAN_PINS"} <= set(declared), stage


def test_snapshot_rewrites_the_sources_that_the_base_names(tmp_path: Path) -> None:
    sources = tmp_path / "debian.sources"
    sources.write_text(
        "Types: deb\n# http://snapshot.example/archive/debian/20250520T000000Z\nURIs: http://mirror.example/debian\n"
    )
    script = (SCRIPTS / "apt-install").read_text()
    function = script[script.index("use_snapshot() {") : script.index("leave_docs_out() {")]
    function = function.replace("/etc/apt/sources.list.d/debian.sources", str(sources))
    function = function.replace("/etc/apt/apt.conf.d/10snapshot", str(tmp_path / "10snapshot"))
    for _ in range(2):  # one stage is built on another
        run("bash", "-euc", f"{function}\nuse_snapshot", DEBIAN_SNAPSHOT="20261123T000000Z")
    assert sources.read_text() == "Types: deb\nURIs: http://snapshot.example/archive/debian/20261123T000000Z\n"


def test_the_compiler_never_makes_code_for_the_build_machine_alone(tmp_path: Path) -> None:
    compiler = tmp_path / "portable-cxx"
    compiler.write_text((SCRIPTS / "portable-cxx").read_text().replace("exec /usr/bin/g++", "echo"))
    done = run("bash", compiler, "-O3", "-march=native", "-D__AVX512__", "-o", "a b.o")
    assert done.stdout == "-O3 -march=x86-64-v3 -D__AVX256__ -o a b.o\n"


def test_one_variable_moves_every_cache() -> None:
    code = "import qwen_job_image, os; print(os.environ['HF_HOME'], os.environ['TRITON_CACHE_DIR'])"
    environment = {"PYTHONPATH": str(SCRIPTS / "site"), "QWEN_JOB_CACHE": "/scratch/me", "HF_HOME": "/mine"}
    clean = {name: value for name, value in os.environ.items() if name not in ("TRITON_CACHE_DIR", "HF_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "/mine /scratch/me/triton\n"


@pytest.mark.parametrize(("name", "asked", "has"), [("ampere", "", "1"), ("cpu", "", "0"), ("v100", "", "0"),
                                                    ("ampere", "0", "0"), ("cpu", "1", "1"),
                                                    ("cuda12", "", "1")])  # fmt: skip
def test_the_set_decides_whether_an_image_has_a_compiler_unless_asked(name: str, asked: str, has: str) -> None:
    done = run(SCRIPTS / "has-compiler", f"qwen_job/facts/image/{name}/set.yaml", asked)
    assert done.stdout == f"{has}\n"


def test_another_word_for_the_compiler_is_refused() -> None:
    done = run(SCRIPTS / "has-compiler", "qwen_job/facts/image/cpu/set.yaml", "yes")
    assert done.returncode == 2
    assert done.stderr == "image: WITH_COMPILER=yes: write 1 or 0, or leave it out\n"


def test_the_kernels_of_runs_become_a_layer_of_the_image(tmp_path: Path) -> None:
    engine = tmp_path / "bin" / "buildah"
    engine.parent.mkdir()
    engine.write_text(
        f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\n'
        f'case "$*" in *" -f - "*) cat > {tmp_path}/dockerfile; ls "${{@: -1}}" > {tmp_path}/context ;; esac\n'
    )
    engine.chmod(0o755)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kernels.zip").write_text(name)
    settings = {"PATH": f"{engine.parent}:{os.environ['PATH']}", "IMAGE_ENGINE": "buildah", "HOME": str(tmp_path)}
    done = run(SCRIPTS / "build", "cpu", "me:cpu", WARM=f"{tmp_path}/a {tmp_path}/b/kernels.zip", **settings)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "dockerfile").read_text() == "FROM me:cpu\nCOPY . /opt/image/kernels\n"
    assert (tmp_path / "context").read_text() == "1.zip\n2.zip\n"
    assert len((tmp_path / "calls").read_text().splitlines()) == 2


def test_a_run_without_kernels_is_refused_before_the_build(tmp_path: Path) -> None:
    done = run(SCRIPTS / "build", "cpu", "me:cpu", WARM=str(tmp_path), IMAGE_ENGINE="buildah")
    assert done.returncode == 2
    assert f"image: WARM: {tmp_path}/kernels.zip does not exist" in done.stderr
