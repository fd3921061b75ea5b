"""What a node really hands to docker, apptainer and pyxis, checked against their documented grammar.

Charliecloud, podman and pyxis's options run for real in tests/e2e/test_containers.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import socketserver
import subprocess
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from qwen_job.errors import JobError
from tests.jobs import bundle
from tests.render.slurm.reading import srun_words

DIGEST = "sha256:" + "0123456789abcdef" * 4
# docs.docker.com/reference/cli/docker/container/run and apptainer.org/docs/user/latest/cli/apptainer_exec: the options
# that may stand before the image, and whether they take a value.
FLAGS = {
    "docker": ["rm", "init", "privileged", "read-only", "interactive", "tty", "detach"],
    "apptainer": ["nv", "nvccli", "rocm", "no-home", "cleanenv", "contain", "containall", "writable-tmpfs", "no-init"],
}
VALUES = {
    "docker": ["network", "ipc", "ulimit", "gpus", "device", "cap-add", "volume", "env", "workdir", "entrypoint",
               "user", "name", "shm-size", "label", "security-opt", "pids-limit"],
    "apptainer": ["pwd", "bind", "home", "env", "no-mount", "scratch", "workdir"],
}  # fmt: skip
# github.com/NVIDIA/enroot doc/cmd/import.md: docker://[USER@][REGISTRY#]IMAGE[:TAG], with the characters that it takes.
ENROOT = re.compile(r"(?:[^@#]+@)?(?:(?P<registry>[^#]+)#)?(?P<image>[a-z0-9/._-]+)(?::(?P<tag>[A-Za-z0-9._:-]+))?")


def calls(folder: Path, runtime: str, **sections: Any) -> list[list[str]]:
    """Run the node's script with a stand-in for the runtime, and return the words of each of its calls."""
    run, program = folder / "run", folder / "bin" / runtime
    sections.setdefault("image", "registry.example.com/team/x:1")
    container = {"runtime": runtime, **sections.pop("container", {})}
    text = bundle(folder, "slurm", output=str(run), container=container, **sections).text
    (run / "launch").mkdir(parents=True)
    node = run / "launch" / "node.sh"
    node.write_text(text.split("QWEN_JOB_NODE_END'\n")[1].split("\nQWEN_JOB_NODE_END")[0] + "\n")
    program.parent.mkdir()
    program.write_text(f"#!/bin/bash\nprintf '%s\\0' \"$@\" >> {folder}/calls; echo >> {folder}/calls\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": "/home/somebody"}
    command = ["bash", str(node), "0", "node1", "61001", "1-0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    lines = (folder / "calls").read_text().split("\0\n")[:-1]
    return [line.split("\0") for line in lines]


def parsed(runtime: str, words: list[str]) -> argparse.Namespace:
    """Read the words of ``docker run`` or ``apptainer exec`` as those commands do."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("verb")
    for name in FLAGS[runtime]:
        parser.add_argument(f"--{name}", action="store_true")
    for name in VALUES[runtime]:
        parser.add_argument(f"--{name}", action="append", default=[])
    parser.add_argument("image")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return parser.parse_args(words)


GPUS = {"gpu": {"name": "X1", "memory_gib": 80, "compute_capability": 8.0}, "gpus_per_node": 2}
FABRIC = {**GPUS, "nodes": 2, "interconnect": "infiniband"}


def test_docker_runs_as_the_user_with_the_limits_and_the_devices(tmp_path: Path) -> None:
    found, *started, after = calls(
        tmp_path, "docker", cluster=FABRIC, env={"NVIDIA_VISIBLE_DEVICES": "0,1", "OWN": "s"}
    )
    assert found == after == ["ps", "--all", "--quiet", "--filter", "label=qwen-job=1"]
    assert len(started) == 3, "the image is tried, then the node is checked, then the trainer starts"
    for words in started:
        asked = parsed("docker", words)
        assert (asked.verb, asked.image, asked.label) == ("run", "registry.example.com/team/x:1", ["qwen-job=1"])
        assert (asked.network, asked.ipc, asked.ulimit) == (["host"], ["host"], ["memlock=-1"])
        assert (asked.gpus, asked.device, asked.cap_add) == (["all"], ["/dev/infiniband"], ["IPC_LOCK"])
        assert (asked.user, asked.workdir) == ([f"{os.getuid()}:{os.getgid()}"], ["/"])
        assert "NVIDIA_VISIBLE_DEVICES=0,1" in asked.env and "CUDA_VISIBLE_DEVICES" in asked.env
        assert not any("OWN" in word for word in words), "every user of the node can read a command line"
        assert asked.command[:3] == ["bash", f"{tmp_path}/run/launch/node.sh", "inside"]


def test_docker_s_client_tells_its_daemon_the_same(tmp_path: Path) -> None:
    words = calls(tmp_path, "docker", cluster=GPUS, container={"mount_home": True, "mounts": ["/opt/tools"]})[-2]
    volumes = ["/data:/data:ro", "/opt/tools:/opt/tools", f"{tmp_path}/run:{tmp_path}/run"]
    volumes += [f"{tmp_path}/.qwen-job-cache:{tmp_path}/.qwen-job-cache", "/home/somebody:/home/somebody"]
    assert sorted(parsed("docker", words).volume) == sorted(volumes)
    if client := shutil.which("docker"):
        asked = told_to_the_daemon([client, *words], tmp_path / "socket")
        host = asked["HostConfig"]
        assert sorted(host["Binds"]) == sorted(volumes)
        assert (host["NetworkMode"], host["IpcMode"], host["AutoRemove"]) == ("host", "host", False)
        assert host["Ulimits"] == [{"Name": "memlock", "Hard": -1, "Soft": -1}]
        assert host["DeviceRequests"][0]["Count"] == -1
        assert (asked["User"], asked["WorkingDir"]) == (f"{os.getuid()}:{os.getgid()}", "/")


def told_to_the_daemon(command: list[str], socket: Path) -> dict[str, Any]:
    """Run docker's own client against a daemon that only listens, and return what it asks to create."""
    asked: list[dict[str, Any]] = []

    class Daemon(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, {})

        def do_HEAD(self) -> None:
            self.answer(200, {})

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer(500, {"message": "this daemon only listens"})

        def answer(self, status: int, body: dict[str, Any]) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Api-Version", "1.43")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def address_string(self) -> str:
            return "client"

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with socketserver.ThreadingUnixStreamServer(str(socket), Daemon) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {**os.environ, "DOCKER_HOST": f"unix://{socket}"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
        server.shutdown()
    assert asked and "this daemon only listens" in done.stderr, done.stderr
    return asked[0]


def test_apptainer_mounts_what_it_is_told_and_no_home(tmp_path: Path) -> None:
    for words in calls(tmp_path, "apptainer", cluster=GPUS, container={"image": "/images/x.sif"}):
        asked = parsed("apptainer", words)
        assert (asked.verb, asked.image, asked.nv, asked.no_home, asked.pwd) == (
            "exec",
            "/images/x.sif",
            True,
            True,
            ["/"],
        )
        assert all(re.fullmatch(r"/[^:,]+:/[^:,]+(:r[ow])?", pair) for pair in asked.bind)
        assert f"{tmp_path}/run:{tmp_path}/run" in asked.bind and "/data:/data:ro" in asked.bind
        assert asked.command[:3] == ["bash", f"{tmp_path}/run/launch/node.sh", "inside"]


def test_apptainer_s_home_and_cpus(tmp_path: Path) -> None:
    words = calls(tmp_path, "apptainer", cluster={"gpu": "CPU", "gpus_per_node": 1}, container={"mount_home": True})[0]
    asked = parsed("apptainer", words)
    assert (asked.nv, asked.no_home, asked.image) == (False, False, "docker://registry.example.com/team/x:1")


@pytest.mark.parametrize(
    ("written", "registry", "image", "tag"),
    [
        ("ubuntu", None, "ubuntu", None),
        ("team/x:1", None, "team/x", "1"),
        ("registry.example.com/team/x:1", "registry.example.com", "team/x", "1"),
        ("registry.example.com#team/x:1", "registry.example.com", "team/x", "1"),
        ("docker://localhost:5000/x", "localhost:5000", "x", None),
        (f"registry.example.com/x@{DIGEST}", "registry.example.com", "x", DIGEST),
        (f"registry.example.com/x:1@{DIGEST}", "registry.example.com", "x", DIGEST),
        ("me@registry.example.com/team/x:1", "registry.example.com", "team/x", "1"),
        ("docker://$oauthtoken@registry.example.com/x", "registry.example.com", "x", None),
        (f"me@registry.example.com:5000/x:1@{DIGEST}", "registry.example.com:5000", "x", DIGEST),
        ("me@team/x:1", None, "team/x", "1"),
    ],
)
def test_pyxis_gets_a_registry_s_image_as_enroot_names_it(
    tmp_path: Path, written: str, registry: str | None, image: str, tag: str | None
) -> None:
    words = srun_words(bundle(tmp_path, "slurm", image=written, container={"runtime": "pyxis"}).text)
    (given,) = [word.partition("=")[2] for word in words if word.startswith("--container-image=")]
    found = ENROOT.fullmatch(given)
    assert found and (found["registry"], found["image"], found["tag"]) == (registry, image, tag)
    user = written.removeprefix("docker://").removesuffix(f"@{DIGEST}").rpartition("@")[0]
    assert given.startswith(f"{user}@" if user else found["registry"] or found["image"])


@pytest.mark.parametrize(
    ("runtime", "image", "said"),
    [
        ("docker", "/images/x.sif", "docker needs the name of an image, not the file or folder '/images/x.sif'"),
        ("podman", "/images/x", "podman needs the name of an image"),
        ("docker", "docker://x", "docker does not support docker://"),
        ("apptainer", "x.sif", "'x.sif': write the file's absolute path"),
        ("pyxis", "./x.sqsh", "'./x.sqsh': write the file's absolute path"),
        ("podman", "--privileged", "'--privileged' is not an image name"),
        ("podman", "a b", "'a b' is not an image name: it contains a space"),
    ],
)
def test_an_image_that_the_runtime_cannot_take_is_refused_by_its_field(
    tmp_path: Path, runtime: str, image: str, said: str
) -> None:
    for field, sections in (
        ("container.image", {"container": {"runtime": runtime, "image": image}}),
        ("image", {"image": image, "container": {"runtime": runtime}}),
    ):
        with pytest.raises(JobError) as caught:
            bundle(tmp_path, "slurm", **sections)
        assert f"{field}: {said}" in str(caught.value)


def test_pyxis_has_no_modules_and_no_spaces(tmp_path: Path) -> None:
    container = {"runtime": "pyxis", "image": "/x.sqsh"}
    with pytest.raises(JobError, match=r"slurm.modules: pyxis starts the whole step inside the container"):
        bundle(tmp_path, "slurm", container=container, slurm={"modules": ["cuda"]})
    with pytest.raises(JobError, match=r"output: pyxis cannot mount '/a b': it contains a space"):
        bundle(tmp_path, "slurm", container=container, output="/a b")


RUNTIMES = ("pyxis", "apptainer", "podman", "docker", "charliecloud")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_sees_the_run_the_data_and_the_job_s_mounts(tmp_path: Path, runtime: str) -> None:
    container = {"runtime": runtime, "image": "images/x", "mounts": ["/opt/tools"], "options": ["--an-option"]}
    text = bundle(tmp_path, "slurm", container=container, cluster={"interconnect": "infiniband", "nodes": 2}).text
    for word in ("images/x", "/runs/tiny:/runs/tiny", "/data:/data", "/opt/tools:/opt/tools", "--an-option"):
        assert word in text, word


def test_outer_folders_are_mounted_before_those_inside_them(tmp_path: Path) -> None:
    text = bundle(
        tmp_path,
        "slurm",
        data={"train": "/s/chats.json"},
        output="/s/runs/x",
        container={"runtime": "apptainer", "image": "i"},
    ).text
    assert re.findall(r"--bind ([^\s)]+)", text) == [
        "/s:/s:ro",
        "/s/runs/.qwen-job-cache:/s/runs/.qwen-job-cache",
        "/s/runs/x:/s/runs/x",
    ]


def test_home_is_mounted_only_when_asked(tmp_path: Path) -> None:
    container = {"runtime": "pyxis", "image": "i"}
    assert "--no-container-mount-home" in bundle(tmp_path, "slurm", container=container).text
    assert " --container-mount-home" in bundle(tmp_path, "slurm", container={**container, "mount_home": True}).text


def test_the_user_s_outer_mount_does_not_hide_ours(tmp_path: Path) -> None:
    container = {"runtime": "pyxis", "image": "/x.sqsh", "mounts": ["/runs:/runs:ro"]}
    words = srun_words(bundle(tmp_path, "slurm", container=container).text)
    (pairs,) = [word.partition("=")[2].split(",") for word in words if word.startswith("--container-mounts=")]
    assert pairs.index("/runs:/runs:ro") < pairs.index("/runs/tiny:/runs/tiny")


@pytest.mark.parametrize("runtime", ["docker", "podman"])
def test_the_node_check_in_a_container_is_told_what_slurm_set(tmp_path: Path, runtime: str) -> None:
    words = next(words for words in calls(tmp_path, runtime) if "check" in words)
    passed = {value for option, value in itertools.pairwise(words) if option == "--env"}
    assert {"SLURM_JOB_NODELIST", "SLURM_RESTART_COUNT", "SLURMD_NODENAME"} <= passed
