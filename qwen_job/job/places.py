"""Where a field that somebody looks for elsewhere belongs: one sentence for each common mistake.

``job/mistakes.py`` asks here before it suggests the nearest spelling, which would lead people the wrong way.
"""

from __future__ import annotations

from qwen_job.facts.train_settings import NO_LORA, PARTIAL, facts
from qwen_job.job.slurm_options import FIELDS, KNOWN

_CLAIM = "a volume of kubernetes.volumes, e.g. [{name: shared, mount_path: /shared, pvc: NAME}]"
_GPUS = "cluster.gpus_per_node (and cluster.nodes)"
_LIMIT = "slurm.time, on Kubernetes kubernetes.active_deadline"
# The dotted field, or its name at the top level -> where to write it.
_PLACES = {
    "time": _LIMIT, "time_limit": _LIMIT, "walltime": _LIMIT,
    "gpus": _GPUS, "num_gpus": _GPUS, "n_gpus": _GPUS, "cluster.gpus": "cluster.gpus_per_node",
    "cluster.num_gpus": "cluster.gpus_per_node", "cluster.gpu_per_node": "cluster.gpus_per_node",
    "cluster.name": "cluster.gpu", "cluster.type": "cluster.gpu", "cluster.memory": "cluster.memory_gib",
    "nodes": "cluster.nodes", "gpu": "cluster.gpu", "num_nodes": "cluster.nodes",
    "slurm.nodes": "cluster.nodes", "slurm.gpus": "cluster.gpus_per_node",
    "slurm.gpus_per_node": "cluster.gpus_per_node",
    "slurm.gres": "cluster.gpus_per_node, with slurm.gpu_request: gres (and slurm.gpu_type) for --gres=gpu:TYPE:N",
    "slurm.ntasks": "cluster.gpus_per_node: one process is started for each GPU",
    "slurm.ntasks_per_node": "cluster.gpus_per_node: one process is started for each GPU",
    "slurm.job_name": "name at the top level", "slurm.output": "slurm.log_dir", "slurm.mem": "slurm.memory",
    "slurm.image": "container.image", "slurm.container": "container.runtime", "slurm.env": "env at the top level",
    "model.path": "model.name, with / or ./ in front", "model.id": "model.name", "model.model": "model.name",
    "model.model_name_or_path": "model.name", "model_name_or_path": "model.name",
    "data.path": "data.train", "data.file": "data.train", "data.files": "data.train", "data.dataset": "data.train",
    "data.data_path": "data.train", "dataset": "data.train", "data_path": "data.train",
    "data.validation": "data.eval", "data.test": "data.eval", "data.val": "data.eval", "data.split": "data.eval_split",
    "output_dir": "output", "kubernetes.image": "image at the top level", "container.name": "container.image",
    "kubernetes.pvc": _CLAIM, "kubernetes.volume": _CLAIM, "kubernetes.persistent_volume_claim": _CLAIM,
    "kubernetes.nodes": "cluster.nodes", "kubernetes.replicas": "cluster.nodes",
    "kubernetes.gpus": "cluster.gpus_per_node",
    "kubernetes.env": "env at the top level; for secrets kubernetes.secret_env",
    "kubernetes.command": "kubernetes.pod_container",
    "kubernetes.image_pull_secret": "kubernetes.image_pull_secrets: [NAME]",
    "kubernetes.secret": "kubernetes.secret_env",
    "hostfile.port_ssh": "hostfile.ssh_options: [-p, '2222']", "hostfile.user": "hostfile.ssh_options: [-l, USER]",
    "hostfile.ssh_port": "hostfile.ssh_options: [-p, '2222']", "hosts": "hostfile.hosts", "workers": "hostfile.hosts",
    "wandb": "train.report_to: wandb", "mail_type": "slurm.sbatch.mail-type", "modules": "slurm.modules",
}  # fmt: skip
# A value that another program calls by this name.
_VALUES = {
    "container.runtime": {"singularity": "apptainer", "enroot": "pyxis", "sarus": "podman", "shifter": "charliecloud"},
}  # fmt: skip


def right_place(field: str) -> str:
    """Return where the unknown ``field`` belongs, or why it is not offered, as a clause; empty if nobody knows."""
    section, _, name = field.rpartition(".")
    lower = name.lower().replace("-", "_")
    if place := _PLACES.get(f"{section}.{lower}" if section else lower):
        return f"write {place}"
    if lower.startswith(PARTIAL):
        return NO_LORA
    if section in ("slurm", "slurm.srun") and (option := lower.replace("_", "-")) in KNOWN:
        return f"write slurm.{FIELDS[option]}" if option in FIELDS else f"write slurm.sbatch.{option}"
    table = facts()
    if lower in table["renamed"]:
        return f"write train.{table['renamed'][lower]}"
    if section != "train" and lower in table["accepted"]:
        return f"write train.{lower}"
    return ""


def other_word(field: str, value: object) -> str:
    """Return what ``value`` is called here, for a program with another name; empty if nothing is known."""
    return _VALUES.get(field, {}).get(str(value).lower(), "")


def as_list(value: str) -> str:
    """Return text that should have been a list as one: ``-p 2222`` has two items, ``wandb, tensorboard`` too."""
    words = value.split() if value.startswith("-") else [word.strip() for word in value.split(",")]
    return f"[{', '.join(repr(word) if word[:1].isdigit() else word for word in words if word)}]"
