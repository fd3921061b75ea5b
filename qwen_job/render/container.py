"""How a container runtime runs a command on a node: mounts, GPUs, shared memory, environment.

pyxis takes its settings as options of srun, so that all of node.sh runs inside; the other runtimes are a prefix of the
commands that node.sh starts (templates/common/container.sh.j2). With ``none`` the commands run as they are. In every
case the data, the model, the caches and the run folder have the same paths as outside.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from qwen_job.errors import JobError
from qwen_job.job.document import Path as FieldPath
from qwen_job.job.paths import paths_of
from qwen_job.plan import Plan
from qwen_job.render.default_image import default_image, how_to_build
from qwen_job.render.references import notify_variables

# Set on the node, so runtimes that start with an empty environment must pass them on.
_PASSED = (
    "CUDA_VISIBLE_DEVICES", "QWEN_JOB_STARTED", "QWEN_JOB_TIME_LIMIT_SECONDS", "QWEN_JOB_UMASK", "SLURMD_NODENAME",
    "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_JOB_NODELIST",
    "SLURM_RESTART_COUNT", "SLURM_STEP_NODELIST", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR",
    "TRITON_CACHE_DIR", "QWEN_JOB_KEEP_MEMORY",
)  # fmt: skip
# Characters that separate mounts, or source and target; pyxis passes the rest to enroot as a line of an fstab.
_UNMOUNTABLE = {"pyxis": r"[,\s$`\\]", "apptainer": r'[,"\n]'}
_DIGEST = re.compile(r"@(sha(?:256|512):[0-9a-fA-F]+)$")
_SIGNS = {":": "a colon", ",": "a comma", " ": "a space", "\n": "a newline", '"': "a quote"}


def node_settings(plan: Plan, runtime: str) -> dict[str, Any]:
    """Return what node.sh must know about the container; ``runtime`` is none where the target has no containers."""
    if runtime not in _ENGINES:
        return {"runtime": runtime, "mount_home": plan.job.container.mount_home}
    image, pairs = _image(plan), mounts(plan)
    return {
        "runtime": runtime,
        "mount_home": plan.job.container.mount_home,
        "image": image,
        "image_field": ".".join(map(str, _image_field(plan))),
        "engine": _ENGINES[runtime](plan, pairs),
        "container_options": plan.job.container.options,
        "made": sorted({plan.job.output, *_folders(plan)[1].values()}),
        "mount_points": [_target(pair).lstrip("/") or "." for pair in pairs],
    }


def batch_settings(plan: Plan) -> dict[str, Any]:
    """Return what the batch script must do around a step that runs in containers."""
    runtime = plan.job.container.runtime
    if runtime != "pyxis":
        return {"pyxis": False, "outlives_step": runtime in ("docker", "podman")}
    image = _image(plan)
    plans = [plan, *(run.plan for run in plan.sweep)]
    return {
        "pyxis": True,
        "outlives_step": False,
        "image": image,
        "image_is_file": image.startswith("/"),
        "image_field": ".".join(map(str, _image_field(plan))),
        # pyxis refuses to mount missing folders. Scratch is local to each node.
        "made": sorted({path for one in plans for field, path in _folders(one)[1].items() if field[0] != "slurm"}),
    }


def srun_options(plan: Plan) -> list[str]:
    """Return the options that pyxis adds to srun; none for other runtimes."""
    container = plan.job.container
    if container.runtime != "pyxis":
        return []
    if plan.job.slurm.modules:
        message = "pyxis starts the whole step inside the container, which has no modules: remove them"
        raise JobError([plan.job.problem(("slurm", "modules"), message)])
    image, pairs = _image(plan), mounts(plan)
    home = "--container-mount-home" if container.mount_home else "--no-container-mount-home"
    options = [f"--container-image={image}", f"--container-mounts={','.join(pairs)}", home, "--container-workdir=/"]
    # The image's environment overrides the job's, except for the names listed here.
    return [*options, f"--container-env={','.join(plan.env)}", *container.options]


def mounts(plan: Plan) -> list[str]:
    """Return SOURCE:TARGET[:ro] for all paths of the job, outermost folders only, and for the user's mounts."""
    job = plan.job
    reading, writing = _folders(plan)
    _check_mountable(plan, {**reading, **writing})
    covered = set(writing.values())
    others = covered | set(reading.values())
    own = [f"{path}:{path}" for path in covered if not _inside(path, covered)]
    own += [f"{path}:{path}:ro" for path in others - covered if not _inside(path, others)]
    pairs = [*own, *(_user_mount(plan, index, text) for index, text in enumerate(job.container.mounts))]
    # Outer folders first: a later mount of /shared would hide an earlier one of /shared/runs.
    return sorted(pairs, key=lambda pair: PurePosixPath(_target(pair)).parts)


def _folders(plan: Plan) -> tuple[dict[FieldPath, str], dict[FieldPath, str]]:
    """Return field -> folder for what the job only reads, and for what it writes."""
    reading: dict[FieldPath, str] = {}
    writing: dict[FieldPath, str] = {("model", "cache_dir"): plan.job.model_cache}
    for one in paths_of(plan.job):
        (writing if one.writes else reading)[one.field] = one.folder
    if plan.job.slurm.scratch and plan.job.container.runtime != "none":
        writing["slurm", "scratch"] = plan.job.slurm.scratch
    return reading, writing


def _check_mountable(plan: Plan, folders: dict[FieldPath, str]) -> None:
    container = plan.job.container
    written: dict[FieldPath, str] = {("container", "mounts", i): text for i, text in enumerate(container.mounts)}
    others = _UNMOUNTABLE.get(container.runtime, r"\n")
    problems = [
        plan.job.problem(
            path, f"{container.runtime} cannot mount {folder!r}: it contains {_SIGNS.get(found[0], found[0])}"
        )
        for places, signs in ((folders, ":"), ({**folders, **written}, others))
        for path, folder in places.items()
        if (found := re.search(signs, folder))
    ]
    if problems:
        raise JobError(problems)


def _inside(path: str, others: set[str]) -> bool:
    return any(path.startswith(other.rstrip("/") + "/") for other in others)


def _user_mount(plan: Plan, index: int, text: str) -> str:
    parts = text.split(":")
    if not all(part.startswith("/") for part in parts[:2]) or parts[2:] not in ([], ["ro"], ["rw"]):
        message = f"{text!r} is not SOURCE[:TARGET[:ro]] with absolute paths"
        raise JobError([plan.job.problem(("container", "mounts", index), message)])
    return text if len(parts) > 1 else f"{text}:{text}"


def _target(pair: str) -> str:
    return pair.split(":")[1]


def _image_field(plan: Plan) -> FieldPath:
    return ("container", "image") if plan.job.container.image else ("image",)


def _image(plan: Plan) -> str:
    """Return the image in the form that the runtime expects."""
    runtime = plan.job.container.runtime
    image = plan.job.container.image or plan.job.image or default_image(plan)
    if not image:
        build = f"a checkout has no released one, so build and push it with {how_to_build(plan)}"
        message = f"container.runtime {runtime} needs an image: set image or container.image; {build}"
        raise JobError([plan.job.problem(("container", "runtime"), message)])
    if problem := _image_problem(runtime, image):
        raise JobError([plan.job.problem(_image_field(plan), problem)])
    if image.startswith("/") or runtime in ("docker", "podman", "charliecloud"):
        return image
    if runtime == "apptainer":
        return image if "://" in image else f"docker://{image}"
    return _enroot_name(image)


def _image_problem(runtime: str, image: str) -> str:
    is_file = image.startswith((".", "/")) or image.endswith((".sqsh", ".sif", ".squashfs"))
    if image.startswith("-"):
        return f"{image!r} is not an image name"
    if is_file and runtime in ("docker", "podman"):
        return f"{runtime} needs the name of an image, not the file or folder {image!r}"
    if is_file and not image.startswith("/"):
        return f"{image!r}: write the file's absolute path, which must be the same on all nodes"
    if "://" in image and runtime in ("docker", "charliecloud"):
        return f"{runtime} does not support {image.partition('://')[0]}://; write the image's name"
    if not image.startswith("/") and re.search(r"\s", image):
        return f"{image!r} is not an image name: it contains a space"
    return ""


def _enroot_name(image: str) -> str:
    """Write [USER@]REGISTRY/NAME:TAG or NAME@DIGEST as enroot reads it: [USER@]REGISTRY#NAME:TAG, NAME:DIGEST.

    Enroot reads the part before the first ``@`` as a user, and a name without ``#`` as one of Docker Hub.
    """
    image = image.removeprefix("docker://")
    if "#" in image or "://" in image:
        return image
    name, digest = image, ""
    if found := _DIGEST.search(image):
        name, digest = image[: found.start()], f":{found[1]}"
        head, slash, last = name.rpartition("/")
        name = f"{head}{slash}{last.partition(':')[0]}"
    user, at, name = name.rpartition("@")
    registry, slash, path = name.partition("/")
    if slash and (re.search("[.:]", registry) or registry == "localhost"):
        name = f"{registry}#{path}"
    return f"{user}{at}{name}{digest}"


def _apptainer(plan: Plan, pairs: list[str]) -> list[str]:
    words = ["apptainer", "exec", *([] if plan.gpu.is_cpu else ["--nv"]), "--pwd", "/"]
    words += [] if plan.job.container.mount_home else ["--no-home"]
    for pair in pairs:
        words += ["--bind", pair]
    return words


def _oci(program: str) -> Callable[[Plan, list[str]], list[str]]:
    own = {
        # The daemon is root and can raise the limit. Rootless podman can only pass on the step's own limit; root inside
        # is the user outside.
        "docker": (["--ulimit", "memlock=-1"], ["--gpus", "all"]),
        "podman": (
            ["--ulimit", "host", "--pids-limit", "-1", "--security-opt", "label=disable", "--user", "0:0"],
            ["--device", "nvidia.com/gpu=all"],
        ),
    }

    def words(plan: Plan, pairs: list[str]) -> list[str]:
        limits, gpus = own[program]
        result = [program, "run", "--network", "host", "--ipc", "host", *limits]
        result += [] if plan.gpu.is_cpu else gpus
        if plan.interconnect in ("infiniband", "roce", "efa"):
            result += ["--device", "/dev/infiniband", "--cap-add", "IPC_LOCK"]
        for pair in pairs:
            result += ["--volume", pair]
        for name in (*_PASSED, *notify_variables(plan.job)):
            result += ["--env", name]
        for name, value in plan.env.items():
            # Read before anything runs in the container; the rest of the job's environment is set inside.
            result += ["--env", f"{name}={value}"] if name.startswith(("NVIDIA_", "MELLANOX_")) else []
        return [*result, "--workdir", "/", "--entrypoint", ""]

    return words


def _charliecloud(plan: Plan, pairs: list[str]) -> list[str]:
    words = ["ch-run", *(["--home"] if plan.job.container.mount_home else []), "--cd", "/"]
    for pair in pairs:
        # ch-run has no read-only mounts.
        words += ["--bind", ":".join(pair.split(":")[:2])]
    return words


_ENGINES: dict[str, Callable[[Plan, list[str]], list[str]]] = {
    "apptainer": _apptainer,
    "podman": _oci("podman"),
    "docker": _oci("docker"),
    "charliecloud": _charliecloud,
}
