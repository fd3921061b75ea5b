"""How a container runtime is told to run a command on a node: mounts, GPUs, shared memory, environment.

pyxis takes its settings as options of srun; the other runtimes are a prefix of the command. With ``none`` the
command runs as it is. In every case the data, the model, the caches and the run's folder are seen under their own
paths.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

from qwen_job.errors import JobError
from qwen_job.job.document import Path as FieldPath
from qwen_job.job.model import Container
from qwen_job.plan import Plan

# Set on the node, so the runtimes that start with an empty environment must be told of them.
_PASSED = ("CUDA_VISIBLE_DEVICES", "QWEN_JOB_STARTED", "TMPDIR", "TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR")


def command_words(plan: Plan, runtime: str, python: str) -> list[str]:
    """Return the words that start ``python`` on a node, inside the container where the runtime needs a prefix."""
    if runtime in _PREFIXES:
        return [*_PREFIXES[runtime](plan, _image(plan), mounts(plan)), python]
    return [python]


def srun_options(plan: Plan) -> list[str]:
    """Return the options that pyxis adds to srun; none for other runtimes."""
    container = plan.job.container
    if container.runtime != "pyxis":
        return []
    image, pairs = _image(plan), mounts(plan)
    home = "--container-mount-home" if container.mount_home else "--no-container-mount-home"
    options = [f"--container-image={image}", f"--container-mounts={','.join(pairs)}", home, "--container-workdir=/"]
    # The image's own environment wins over the job's unless it is named here.
    return [*options, f"--container-env={','.join(plan.env)}", *container.options]


def mounts(plan: Plan) -> list[str]:
    """Return SOURCE:TARGET[:ro] for everything that the job touches, outermost folders only, then the user's."""
    job = plan.job
    reading, writing = _reading(plan), _writing(plan)
    _check_mountable(plan, {**reading, **writing})
    covered = set(writing.values())
    others = covered | set(reading.values())
    own = [f"{path}:{path}" for path in covered if not _inside(path, covered)]
    own += [f"{path}:{path}:ro" for path in others - covered if not _inside(path, others)]
    # Outer folders first: a later mount of /shared would hide an earlier one of /shared/runs.
    own.sort(key=lambda pair: pair.split(":")[0])
    return [*own, *(_user_mount(plan, index, text) for index, text in enumerate(job.container.mounts))]


def _reading(plan: Plan) -> dict[FieldPath, str]:
    """Return field -> folder of what the job only reads."""
    job = plan.job
    folders: dict[FieldPath, str] = {}
    for name in ("train", "eval"):
        for index, file in enumerate(getattr(job.data, name)):
            folders["data", name, index] = str(PurePosixPath(file.path).parent)
    if job.model.resolved_source == "local":
        folders["model", "name"] = job.model.name
    return folders


def _writing(plan: Plan) -> dict[FieldPath, str]:
    """Return field -> folder of what the job writes."""
    folders: dict[FieldPath, str] = {("output",): plan.job.output, ("model", "cache_dir"): plan.model_cache}
    if plan.job.slurm.scratch and plan.job.container.runtime != "none":
        folders["slurm", "scratch"] = plan.job.slurm.scratch
    if plan.job.data.cache_dir:
        folders["data", "cache_dir"] = plan.job.data.cache_dir
    return folders


def _check_mountable(plan: Plan, folders: dict[FieldPath, str]) -> None:
    container = plan.job.container
    written: dict[FieldPath, str] = {("container", "mounts", i): text for i, text in enumerate(container.mounts)}
    # pyxis and apptainer read a list that commas divide; everywhere a colon divides source and target.
    commas = {**folders, **written} if container.runtime in ("pyxis", "apptainer") else {}
    problems = [
        plan.job.problem(path, f"{container.runtime} cannot mount {folder!r}: it holds {sign}")
        for places, character, sign in ((folders, ":", "a colon"), (commas, ",", "a comma"))
        for path, folder in places.items()
        if character in folder
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


def _image(plan: Plan) -> str:
    image = plan.job.container.image or plan.job.image
    if not image:
        message = f"container.runtime {plan.job.container.runtime} needs an image: write image or container.image"
        raise JobError([plan.job.problem(("container", "runtime"), message)])
    return image


def _apptainer(plan: Plan, image: str, pairs: list[str]) -> list[str]:
    container: Container = plan.job.container
    words = ["apptainer", "exec", *([] if plan.gpu.is_cpu else ["--nv"]), "--pwd", "/"]
    words += [] if container.mount_home else ["--no-home"]
    for pair in pairs:
        words += ["--bind", pair]
    return [*words, *container.options, image]


def _oci(program: str) -> Callable[[Plan, str, list[str]], list[str]]:
    def words(plan: Plan, image: str, pairs: list[str]) -> list[str]:
        gpus = {"docker": ["--gpus", "all"], "podman": ["--device", "nvidia.com/gpu=all"]}[program]
        result = [program, "run", "--rm", "--network", "host", "--ipc", "host", "--ulimit", "memlock=-1"]
        result += [] if plan.gpu.is_cpu else gpus
        if plan.interconnect in ("infiniband", "roce", "efa"):
            result += ["--device", "/dev/infiniband", "--cap-add", "IPC_LOCK"]
        for pair in pairs:
            result += ["--volume", pair]
        for name in (*plan.env, *_PASSED):
            result += ["--env", name]
        return [*result, "--workdir", "/", "--entrypoint", "", *plan.job.container.options, image]

    return words


def _charliecloud(plan: Plan, image: str, pairs: list[str]) -> list[str]:
    words = ["ch-run", "--write-fake", *([] if plan.job.container.mount_home else ["--no-home"]), "--cd", "/"]
    for pair in pairs:
        words += ["--bind", ":".join(pair.split(":")[:2])]
    return [*words, *plan.job.container.options, image, "--"]


_PREFIXES: dict[str, Callable[[Plan, str, list[str]], list[str]]] = {
    "apptainer": _apptainer,
    "podman": _oci("podman"),
    "docker": _oci("docker"),
    "charliecloud": _charliecloud,
}
