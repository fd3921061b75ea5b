"""The built CPU image, tried as a strict cluster would run it. `make image-test` builds it and runs this file.

Not named test_*: it needs minutes and a container engine, so `make test` leaves it out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from qwen_job import __version__
from scripts.publish import archive
from scripts.publish.files import fill
from scripts.publish.release_run import Run
from tests.support import optional

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "scripts" / "image" / "run"
IMAGE = os.environ.get("IMAGE_UNDER_TEST", "localhost/qwen-job:cpu")
SIZE_LIMIT = 1.6e9


def in_image(*command: str, options: tuple[str, ...] = (), check: bool = True) -> subprocess.CompletedProcess[str]:
    line = [RUN, IMAGE, *options, "--", *command]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=600)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def sh(script: str, *options: str) -> str:
    return in_image("-c", script, options=("--entrypoint", "/bin/bash", *options)).stdout


def test_version_tells_the_stack() -> None:
    assert in_image("--version").stdout.startswith("qwen-job 0.")
    assert "torch 2.13.0+cpu" in in_image("--version").stdout
    assert "DeepSpeed 0.19.8" in in_image("--version").stdout


def test_quick_check_passes_and_refuses_a_gpu_job() -> None:
    assert "ok       cache" in in_image("node", "check", "--quick").stdout
    refused = in_image("node", "check", "--quick", "--device", "cuda", check=False)
    assert refused.returncode == 5
    assert "this image carries no CUDA" in refused.stderr


def test_any_uid_without_rights_and_no_secret_of_the_build() -> None:
    out = sh("id -u; touch /x /opt/venv/x; ls /etc/ssh/*key* /root/.cache; cat /etc/pip.conf /etc/pip-ca.pem; true")
    assert out == "1234567\n"


def test_neither_compiler_nor_cache_inside() -> None:
    assert sh("which gcc g++ cc pip apt-get; ls /var/lib/apt/lists; true") == "/usr/bin/apt-get\n"


def test_unpacked_size_is_within_the_limit() -> None:
    size = int(sh("du -sxB1 --exclude=/proc --exclude=/sys --exclude=/dev --exclude=/tmp / 2>/dev/null | cut -f1"))
    print(f"unpacked: {size / 1e9:.2f} GB")
    print(sh("du -xm -d1 /opt/venv/lib/python3.11/site-packages /usr 2>/dev/null | sort -rn | head -n 14"))
    assert size < SIZE_LIMIT


def test_packages_fit_each_other_and_the_operators_load() -> None:
    ops = json.loads(sh("cat /opt/image/image.json"))["ops"]
    code = (
        "from importlib.metadata import distributions; from packaging.requirements import Requirement;"
        "from importlib.metadata import version\n"
        "for d in distributions():\n"
        "    for r in map(Requirement, d.requires or []):\n"
        "        if not r.marker or r.marker.evaluate({'extra': ''}):\n"
        "            assert r.specifier.contains(version(r.name), prereleases=True), (d.name, str(r))\n"
        "from deepspeed.git_version_info import installed_ops\n"
        "print(sorted(name for name, built in installed_ops.items() if built))\n"
        "import torch; from deepspeed.ops.adam import DeepSpeedCPUAdam\n"
        "p = torch.nn.Parameter(torch.ones(4)); p.grad = torch.ones(4); DeepSpeedCPUAdam([p], lr=0.1).step()\n"
        "print(p.tolist()[0] < 0.91)"
    )
    out = in_image("-c", code, options=("--entrypoint", "/opt/venv/bin/python")).stdout
    assert all(op in out for op in ops), out
    assert out.rstrip().endswith("True")


def test_bill_of_materials_names_python_and_debian_packages() -> None:
    bom = json.loads(sh("cat /opt/image/sbom.cdx.json"))
    names = {component["name"] for component in bom["components"]}
    assert {"torch", "deepspeed", "libibverbs1", "pdsh"} <= names
    licences = sh("cat /opt/image/licenses.txt")
    unstated = [line for line in licences.splitlines() if line.endswith("\tnot stated")]
    print(f"{len(names)} components, {len(unstated)} without a stated licence: {unstated}")
    assert len(unstated) < 5


def test_a_user_without_an_account_can_be_reached_by_ssh() -> None:
    script = """
    mkdir -p /tmp/k && ssh-keygen -q -t ed25519 -N '' -f /tmp/k/id
    QWEN_JOB_AUTHORIZED_KEYS=/tmp/k/id.pub qwen-job-sshd 2222 2>/tmp/sshd.log &
    until [ -s /tmp/qwen-job/ssh/sshd_config ]; do sleep 0.1; done
    export LD_PRELOAD=libnss_wrapper.so
    export NSS_WRAPPER_PASSWD=/tmp/qwen-job/ssh/passwd NSS_WRAPPER_GROUP=/tmp/qwen-job/ssh/group
    for i in $(seq 50); do
        ssh -p 2222 -i /tmp/k/id -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null localhost \
            'id -u; which qwen-job' 2>/tmp/ssh.log && exit; sleep 0.2
    done; cat /tmp/sshd.log /tmp/ssh.log; exit 1
    """
    assert sh(script) == "1234567\n/opt/venv/bin/qwen-job\n"


def test_a_release_runs_the_archive_of_this_image_by_digest(tmp_path: Path) -> None:
    """The steps images and fill of `scripts/release --dry-run --archive`, on this image (20 s: it writes 1.3 GB)."""
    # docker's images are its own: a machine may have podman besides, without this image.
    if not shutil.which("podman") or subprocess.run(["podman", "image", "exists", IMAGE], check=False).returncode:
        optional.skip("containers", f"podman has no image {IMAGE}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "IMAGE": IMAGE}
    run = Run(tmp_path / "out", dry=True, archive=True, sets=["cpu"], environ=environ)
    archive.images(run)
    (written,) = (run.out / "images").glob("*.tar")
    configuration = archive.configuration(written)
    assert configuration["config"]["Labels"]["org.opencontainers.image.version"] == __version__
    assert configuration["config"]["Entrypoint"][-1] == "qwen-job"
    names = {one["name"] for one in json.loads((run.out / "images" / "cpu.cdx.json").read_text())["components"]}
    assert {"torch", "libibverbs1"} <= names
    digest = archive.check(written)
    written.unlink()
    fill(run)
    assert yaml.safe_load((run.source / "qwen_job/facts/release.yaml").read_text())["digests"]["cpu"] == digest
    code = "from qwen_job.facts.released import released_image; print(released_image('cpu'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=run.source, capture_output=True, text=True, check=True)
    assert done.stdout == f"ghcr.io/qwen-job/qwen-job@{digest}\n"


@pytest.mark.timeout(900)
def test_demo_trains_as_any_uid_read_only_and_offline(tmp_path: Path) -> None:
    for folder in ("configs", "run"):
        (tmp_path / folder).mkdir()
    tmp_path.chmod(0o755)
    (tmp_path / "run").chmod(0o777)
    subprocess.run(["cp", "-r", ROOT / "configs", tmp_path], check=True)
    options = ("-v", f"{tmp_path}/configs:/job/configs:ro", "-v", f"{tmp_path}/run:/run/out", "-w", "/tmp")
    before = time.monotonic()
    command = ("submit", "/job/configs/jobs/demo.yaml", "--target", "local", "--set", "output=/run/out/demo")
    out = in_image(*command, options=options)
    print(f"demo in the image: {time.monotonic() - before:.0f} s\n{out.stdout[-800:]}")
    assert json.loads((tmp_path / "run" / "demo" / "done.json").read_text())["step"] > 0
    started = [json.loads(line) for line in (tmp_path / "run" / "demo" / "metrics.jsonl").read_text().splitlines()]
    first = next(entry["time"] for entry in started if entry["type"] == "step")
    print(f"container start to first step: {first - (time.time() - (time.monotonic() - before)):.1f} s")
