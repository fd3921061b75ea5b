"""The one test for secrets, because others can read the files, manifests and scripts of a render.

The patterns work in RE2 as well as in Python: the chart's guard contains the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from qwen_job.errors import Problem
from qwen_job.job.document import Path as FieldPath
from qwen_job.plan import Plan

# The last word of a secret's name, in any case: hf_token, WANDB_KEY, sshPrivateKey, db-password2.
SECRET_NAME = (
    r"(?i)((^|[_.-])(token|pass|pwd|secrets?|cred(ential)?s?|key|(api|access|private|secret)_?keys?"
    r"|pat|bearer|auth|authorization|jwt|cookie|dsn|webhook(_url)?)"
    r"|passwd|passwords?|passphrase|sshpass|(hf|gh|hub|api|auth|access|bot)_?tokens?|(wandb|hf)key)([_.-](ro|rw|read|write|prod|production|staging|dev|test|main|old|new))?[_.-]?[0-9]*$"
)
# Tokenizer tokens, public keys and sort keys are not secrets.
NO_SECRET = (
    r"(?i)(^|[_.-])((bos|eos|pad|unk|sep|cls|mask|end|stop)_token"
    r"|(public|pub|sort|primary|group|cache|json|label)_?key)$"
)  # fmt: skip
# Nor are switches, or the path of a file with the secret.
NO_SECRET_VALUE = r"(?i)^\s*(|0|1|true|false|yes|no|on|off|none|null|(~|\.|\.\.)?(/[\w.-]+){2,}/?)\s*$"
# Forms that only secrets have: //user:password@, a private key, the tokens of hubs.
SECRET_VALUE = (
    r"//[^\s/?#@:]*:[^\s/?#@$][^\s/?#@]*@|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\b(AccountKey|SharedAccessKey)=[^;$]|[?&]sig=[^&$]|\bBearer [\w.~+/=-]{16}"
    r"|\b(hf_[A-Za-z0-9]{30}|gh[pousr]_[A-Za-z0-9]{30}"
    r"|github_pat_\w{30}|glpat-[\w-]{20}|sk-[\w-]{30}|xox[abprs]-[\w-]{20}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.)"
)
_CAMEL = r"([a-z0-9])([A-Z])"
_ASSIGNED = r"""(?:^|[\s;&|(,'"=])([A-Za-z_][A-Za-z0-9_]*)=("[^"]*"|'[^']*'|[^\s;&|),'"]*)"""
# Fields that set variables: NAME=VALUE in a shell line, in --export, in a runtime's --env.
_ASSIGNING = (("slurm", "setup"), ("slurm", "sbatch"), ("slurm", "srun"), ("container", "options"))


def is_secret(name: str, value: str) -> bool:
    """Tell whether a variable is a secret, which must not be written where others can read it."""
    if holds_secret(value):
        return True
    words = re.sub(_CAMEL, r"\1_\2", name)
    named = re.search(SECRET_NAME, words) and not re.search(NO_SECRET, words)
    return bool(named) and not re.search(NO_SECRET_VALUE, value)


def holds_secret(value: str) -> bool:
    """Tell whether a text contains something that has the form of a secret, whatever its name."""
    return bool(re.search(SECRET_VALUE, value))


def secret_problems(plan: Plan, target: str) -> Iterator[Problem]:
    """Yield a problem for every secret that the files of ``target`` would expose, with a safe way to pass it."""
    for job in (plan.job, *(run.plan.job for run in plan.sweep)):
        for name, value in job.env.items():
            if is_secret(name, value):
                message = f"looks like a secret, and others can read env; {_way(name, plan, target)}"
                yield job.problem(("env", name), message)
    for path, name, text in _texts(plan.job.model_dump(exclude={"env"}), ()):
        name = name if name and is_secret(name, text) else _assigned(path, text)
        if name or holds_secret(text):
            what = f"gives {name} a value that looks like a secret" if name else "contains what looks like a secret"
            message = f"{what}, and others can read a job's files; {_way(name or 'NAME', plan, target)}"
            yield plan.job.problem(path, message)


def _way(name: str, plan: Plan, target: str) -> str:
    """Say how to pass a secret to a job on ``target``."""
    if target in ("kubernetes", "helm", "kubeflow"):
        return f"use kubernetes.secret_env: {{{name}: SECRET/KEY}}"
    if target == "hostfile":
        return "remove it and log in once on the hosts (hf auth login, wandb login): ssh does not pass variables on"
    runtime = plan.job.container.runtime if target == "slurm" else "none"
    option = f", and set container.options: [--env, {name}]" if runtime in ("docker", "podman") else ""
    whose = "submits the job (Slurm passes it on)" if target == "slurm" else "starts the job"
    return f"remove it and export {name} in the shell that {whose}{option}"


def _assigned(path: FieldPath, text: str) -> str:
    """Return the name of a secret that a shell line or an option sets to a literal value; empty without one."""
    if path[:2] not in _ASSIGNING:
        return ""
    for name, value in re.findall(_ASSIGNED, text):
        value = value.strip("\"'")
        # A value that the shell looks up, as in $(cat ~/.token), is not in the file.
        if "$" not in value and "`" not in value and is_secret(name, value):
            return str(name)
    return ""


def _texts(value: Any, path: FieldPath) -> Iterator[tuple[FieldPath, str, str]]:
    """Yield every text of a job with its path and, for an entry {name: NAME, value: TEXT}, the name."""
    if isinstance(value, str):
        yield path, "", value
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, (*path, index))
    if isinstance(value, dict):
        name = value.get("name")
        for key, item in value.items():
            if key == "value" and isinstance(name, str) and isinstance(item, str):
                yield (*path, key), name, item
            else:
                yield from _texts(item, (*path, key))
