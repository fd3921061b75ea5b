"""A secret in a job is refused on every target, by one test; what is none passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen_job.errors import JobError
from qwen_job.render import secret
from qwen_job.render.targets import TARGETS
from qwen_job.resources import resource
from tests.jobs import bundle

HOSTS: dict[str, Any] = {
    "hostfile": {"hosts": "n1"}, "image": "registry.example.com/x:y", "data": {"train": "/runs/chats.json"},
    "kubernetes": {"volumes": [{"name": "v", "mount_path": "/runs", "pvc": "v"}]},
}  # fmt: skip
SECRETS = {
    "HF_TOKEN": "x", "hf_token": "abc", "api_key": "abc", "WANDB_KEY": "abc", "SSH_PRIVATE_KEY": "abc",
    "password": "12345",
    "dbPassword2": "abc", "OPENAI_APIKEY": "abc", "Aws_Secret_Access_Key": "a/b", "WANDB_API_KEY": "0" * 40,
    "DB": "postgresql://me:geheim@db:5432/x", "http_proxy": "http://me:p%40ss@proxy:3128", "X": "redis://:geheim@r",
    "HF_TOKEN_READ": "abc", "API_KEY_PROD": "abc",
    "PGPASSWORD": "abc", "SSHPASS": "abc", "HFTOKEN": "abc", "OPENAI_API_KEYS": "abc", "HUB_TOKENS": "abc",
    "AUTHORIZATION": "abc", "MY_CREDS": "abc", "JWT": "abc", "HEADER": "Bearer 0123456789abcdef",
    "STORE": "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=aGVsbG8=", "BLOB": "https://a/b?sv=1&sig=ab",
    "NOTE": "hf_" + "aB3" * 12, "PEM": "-----BEGIN RSA PRIVATE KEY-----\nMIIE",
}  # fmt: skip
HARMLESS = {
    "EOS_TOKEN": "x", "TOKENIZERS_PARALLELISM": "false", "WANDB_API_KEY": "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "MAX_TOKENS": "5", "GOOGLE_APPLICATION_CREDENTIALS": "/shared/me/key.json", "HF_TOKEN_PATH": "/x/token",
    "KEYBOARD": "de", "TOKEN_LIMIT": "a", "KEY_READER": "x",
    "NUM_TOKENS": "5", "BATCH_TOKENS": "5", "NCCL_TOPO": "a?design=1", "BYPASS": "x",
    "TEXT": "a Bearer of news", "SSHPASS_FILE": "x", "AUTHOR": "x",
    "http_proxy": "http://proxy:3128", "IMAGE": "docker://registry:5000/x@sha256:ab", "GIT": "ssh://git@host:22/x",
    "PUBLIC_KEY": "ssh-ed25519 AAAA", "COMPASS": "north", "NCCL_IB_HCA": "=mlx5_0:1", "MONKEY": "x",
}  # fmt: skip


ENTRY = {"name": "HF_TOKEN", "value": "abc"}


def refused(folder: Path, target: str, **sections: Any) -> list[tuple[str, str]]:
    with pytest.raises(JobError) as caught:
        bundle(folder, target, **{**HOSTS, **sections})
    return [(problem.field, problem.message) for problem in caught.value.problems]


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_refuses_every_secret_at_once_and_names_the_right_way(tmp_path: Path, target: str) -> None:
    found = refused(tmp_path, target, env={**SECRETS, **{f"N{n}": v for n, v in enumerate(HARMLESS.values())}})
    assert {field for field, _ in found} == {f"env.{name}" for name in SECRETS}
    right = {"slurm": "export", "local": "export", "hostfile": "log in once"}.get(target, "kubernetes.secret_env: {")
    assert all("looks like a secret" in message and right in message for _, message in found)


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_no_secret_passes(tmp_path: Path, target: str) -> None:
    assert bundle(tmp_path, target, **HOSTS, env=HARMLESS)


@pytest.mark.parametrize(
    ("field", "sections"),
    [
        ("slurm.setup[0]", {"slurm": {"setup": ["export HF_TOKEN='abc'"]}}),
        ("slurm.sbatch.export", {"slurm": {"sbatch": {"export": "ALL,WANDB_API_KEY=abc"}}}),
        ("container.options[1]", {"container": {"options": ["--env", "HF_TOKEN=abc"]}}),
        ("image", {"image": "docker://me:geheim@registry.example.com/x"}),
        ("kubernetes.pod_container.env[0].value", {"kubernetes": {"pod_container": {"env": [ENTRY]}}}),
        ("env.HF_TOKEN", {"sweep": {"env.HF_TOKEN": ["abc", "abd"]}}),
    ],
)  # fmt: skip
def test_a_secret_anywhere_in_the_job_is_refused_there(tmp_path: Path, field: str, sections: dict[str, Any]) -> None:
    assert refused(tmp_path, "slurm", **sections)[0][0] == field


def test_a_secret_that_the_node_looks_up_itself_passes(tmp_path: Path) -> None:
    lines = ['export HF_TOKEN="$(cat ~/.hf_token)"', "export WANDB_API_KEY=$KEY", "source ~/.secrets"]
    assert bundle(tmp_path, "slurm", slurm={"setup": lines})


def test_docker_is_told_to_pass_the_variable_on(tmp_path: Path) -> None:
    ((_, message),) = refused(tmp_path, "slurm", env={"HF_TOKEN": "x"}, container={"runtime": "docker"})
    assert "container.options: [--env, HF_TOKEN]" in message


def test_the_chart_s_guard_has_the_same_patterns() -> None:
    guard = (resource("charts") / "qwen-job" / "templates" / "_guard.tpl").read_text("utf-8")
    for pattern in (secret.SECRET_NAME, secret.NO_SECRET, secret.NO_SECRET_VALUE, secret.SECRET_VALUE):
        assert f"`{pattern}`" in guard
