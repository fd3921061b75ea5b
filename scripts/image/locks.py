"""Write and check the locks of the image: every Python and Debian package with its version (and hash).

    locks.py write [SET ...]   needs a network, uv (see `make image-lock`) and buildah or docker
    locks.py check [SET ...]   needs nothing: offline and quick

What `check` proves: each lock was made from the present inputs (a digest of them stands in its first lines), it meets
every requirement written there, and every Python package has a hash. That the pins fit each other is proved by the
build (`pip check`); that they are new, by nothing but running `write` again.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "qwen_job" / "facts" / "image"
ENGINE = ROOT / "scripts" / "image" / "in-base"
PYTHON = "3.11"
PLATFORM = "x86_64-manylinux_2_28"
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+?)(?: \\)?$", re.M)


def sets() -> list[str]:
    return sorted(path.parent.name for path in CONFIGS.glob("*/set.yaml"))


def lines(path: Path) -> list[str]:
    """The lines of a list that are not empty and not a comment."""
    text = path.read_text() if path.exists() else ""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def has_cuda(name: str) -> bool:
    return "\ncuda: null\n" not in (CONFIGS / name / "set.yaml").read_text()


def python_inputs(name: str) -> dict[str, list[str]]:
    """Lock file name -> the requirements that it answers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = project["dependencies"] + project["optional-dependencies"]["train"]
    deepspeed = [line for line in ours if Requirement(line).name == "deepspeed"]
    rest = [line for line in ours if Requirement(line).name != "deepspeed"]
    return {
        "requirements.lock": sorted(rest + lines(CONFIGS / name / "requirements.in")),
        "deepspeed.lock": deepspeed,
        "build.lock": sorted(lines(CONFIGS / "build.in") + lines(CONFIGS / name / "build.in")),
    }


def debian_inputs(name: str) -> dict[str, list[str]]:
    runtime = lines(CONFIGS / "debian.in") + lines(CONFIGS / name / "debian.in")
    others = ("build", "compiler")
    return {"debian.lock": sorted(runtime)} | {
        f"debian-{kind}.lock": sorted(lines(CONFIGS / f"debian-{kind}.in")) for kind in others
    }


def digest(inputs: list[str]) -> str:
    return hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:16]


def problems_of_python(lock: Path, inputs: list[str]) -> list[str]:
    text = lock.read_text()
    pins = {canonicalize_name(name): version for name, version in PIN.findall(text)}
    found = []
    for line in inputs:
        wanted = Requirement(line)
        pin = pins.get(canonicalize_name(wanted.name))
        if pin is None or not wanted.specifier.contains(pin, prereleases=True):
            found.append(f"{lock}: {line} is not met (locked: {pin})")
    if has_cuda(lock.parent.name) and "+cpu" in pins.get("torch", ""):
        found.append(f"{lock}: torch is a build for CPUs: run 'make image-lock'")
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.M)[1:]
    found += [f"{lock}: {block.split()[0]} has no hash" for block in blocks if "--hash=sha256:" not in block]
    return found


def problems_of_debian(lock: Path, inputs: list[str]) -> list[str]:
    locked = {line.split("=")[0] for line in lines(lock)}
    return [f"{lock}: {name} is not in it" for name in inputs if name not in locked]


def check(name: str) -> list[str]:
    """Return what is wrong with the locks of one set, a line each; empty when they are current."""
    found = []
    for kind, inputs_of, problems_of in (
        ("python", python_inputs, problems_of_python),
        ("debian", debian_inputs, problems_of_debian),
    ):
        for file, inputs in inputs_of(name).items():
            lock = CONFIGS / name / file
            if not lock.exists():
                found.append(f"{lock}: missing: run 'make image-lock'")
            elif f"# inputs: {digest(inputs)}\n" not in lock.read_text():
                found.append(f"{lock}: older than its {kind} inputs: run 'make image-lock'")
            else:
                found += problems_of(lock, inputs)
    return found


def write_lock(lock: Path, inputs: list[str], body: str) -> None:
    today = datetime.now(timezone.utc).strftime("%Y%m%dT000000Z")
    text = f"# Made by `make image-lock`; do not edit.\n# inputs: {digest(inputs)}\n# date: {today}\n{body.strip()}\n"
    aside = lock.with_suffix(".lock.new")
    aside.write_text(text)
    aside.replace(lock)
    print(f"locks: {lock.relative_to(ROOT)}: {len(lines(lock))} lines")


def resolve_python(name: str, inputs: list[str], *options: str) -> str:
    """Resolve with uv; where pip of this machine looks for packages (find-links), uv looks too.

    A set with CUDA does not look there: a CPU build of torch in such a folder would win over the one with CUDA.
    """
    environment = {key: value for key, value in os.environ.items() if key != "UV_FIND_LINKS" or not has_cuda(name)}
    with tempfile.NamedTemporaryFile("w", suffix=".in") as wanted:
        wanted.write("\n".join(inputs) + "\n")
        wanted.flush()
        command = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--generate-hashes"]
        command += ["--python-version", PYTHON, "--python-platform", PLATFORM, *options, wanted.name]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


@cache
def resolve_debian(base: str, packages: tuple[str, ...]) -> list[str]:
    """Ask apt, in the base image, for everything that ``packages`` need: ``name=version`` lines, sorted."""
    script = (
        "set -eu; export DEBIAN_FRONTEND=noninteractive; apt-get update -qq >&2; apt-get upgrade -y -qq >&2;"
        f" apt-get install -y -qq --no-install-recommends {' '.join(packages)} >&2;"
        " dpkg-query -W -f '${Package}=${Version}\\n'"
    )
    run = subprocess.run([str(ENGINE), base], input=script, check=True, stdout=subprocess.PIPE, text=True)
    return sorted(line for line in run.stdout.splitlines() if "=" in line)


def write(name: str, base: str) -> None:
    python = python_inputs(name)
    # DeepSpeed's own requirements are locked with ours; the package itself is built in the image from its source.
    everything = python["requirements.lock"] + python["deepspeed.lock"]
    body = resolve_python(name, everything, "--no-emit-package", "deepspeed", "--prerelease", "disallow")
    write_lock(CONFIGS / name / "requirements.lock", python["requirements.lock"], body)
    deepspeed = resolve_python(name, python["deepspeed.lock"], "--no-deps")
    write_lock(CONFIGS / name / "deepspeed.lock", python["deepspeed.lock"], deepspeed)
    build = resolve_python(name, python["build.lock"], "--allow-unsafe")
    write_lock(CONFIGS / name / "build.lock", python["build.lock"], build)

    debian = debian_inputs(name)
    runtime = resolve_debian(base, tuple(debian["debian.lock"]))
    write_lock(CONFIGS / name / "debian.lock", debian["debian.lock"], "\n".join(runtime))
    for file in ("debian-build.lock", "debian-compiler.lock"):
        both = resolve_debian(base, tuple(debian["debian.lock"] + debian[file]))
        write_lock(CONFIGS / name / file, debian[file], "\n".join(set_minus(both, runtime)))


def set_minus(whole: list[str], part: list[str]) -> list[str]:
    return [line for line in whole if line not in set(part)]


def main(arguments: list[str]) -> int:
    command, names = arguments[0], arguments[1:] or sets()
    unknown = [name for name in names if name not in sets()]
    if unknown:
        print(f"locks: unknown SET {unknown[0]!r}: one of {', '.join(sets())}", file=sys.stderr)
        return 2
    if command == "write":
        for name in names:
            write(name, os.environ["BASE_IMAGE"])
    found = [problem for name in names for problem in check(name)]
    print("\n".join(found) if found else f"locks: current: {', '.join(names)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
