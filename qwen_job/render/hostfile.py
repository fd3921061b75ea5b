"""Target hostfile: a DeepSpeed hostfile, .deepspeed_env and a script that launches over ssh."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from qwen_job.errors import JobError
from qwen_job.hosts import expand_hosts, is_loopback
from qwen_job.job.hostfile import is_elsewhere
from qwen_job.plan import Plan
from qwen_job.render.bundle import Bundle
from qwen_job.render.context import node_check, shell_context
from qwen_job.render.engine import render_template
from qwen_job.render.evaluation import check_words, evaluate_words
from qwen_job.render.quote import Unrepresentable, deepspeed_env


def render(plan: Plan, folders: Sequence[str | Path] = ()) -> Bundle:
    """Return hostfile, .deepspeed_env and launch.sh.

    Raises:
        JobError: for hosts that do not match ``cluster``.
    """
    section = plan.job.hostfile
    hosts = _hosts(plan)
    _check_python(plan)
    lines = {"lines": hosts, "slots": plan.gpus_per_node}
    hostfile = render_template("hostfile/hostfile.j2", lines, folders)
    environment = _deepspeed_env(plan)
    evaluates = section.launcher != "pdsh"  # whose launcher starts the trainers, not our script on the nodes
    context = shell_context(
        plan,
        folders,
        python=section.python,
        launcher=section.launcher,
        preflight=node_check(plan) if section.preflight else (),
        evaluate=evaluate_words(plan) if evaluates else (),
        check_suite=check_words(plan) if evaluates else (),
    )
    context |= {
        "preflight": section.preflight,
        "hostfile": hostfile,
        "hosts": hosts,
        "spares": _spares(plan, hosts),
        "fixed_master": section.master_addr is not None,
        "deepspeed_env": environment,
        "master_addr": section.master_addr or hosts[0],
        "port": section.port,
        "ssh_options": section.ssh_options,
        "ssh_options_text": " ".join(section.ssh_options),
    }
    files = {
        "hostfile": hostfile,
        ".deepspeed_env": environment,
        "launch.sh": render_template("hostfile/launch.sh.j2", context, folders),
    }
    return Bundle("hostfile", files, "hostfile", frozenset({"launch.sh"}))


def _hosts(plan: Plan) -> list[str]:
    written = plan.job.hostfile.hosts
    for index, entry in enumerate(written):
        if is_elsewhere(entry):
            message = f"{entry!r} is not a host: 'qwen-job render' resolves it, or write host names"
            raise JobError([plan.job.problem(("hostfile", "hosts", index), message)])
    hosts = expand_hosts(written)
    if not hosts:
        message = "is empty: list the host names, e.g. hosts: gpu[01-04]"
        raise JobError([plan.job.problem(("hostfile", "hosts"), message)])
    if len(hosts) != plan.nodes:
        twice = _repeated(written)
        once = f" ({', '.join(twice[:3])} more than once, which counts once)" if twice else ""
        message = f"names {len(hosts)} hosts{once}, but cluster.nodes is {plan.nodes}; make them equal"
        if len(hosts) > plan.nodes:
            message += ", or move the others to hostfile.spare_hosts"
        raise JobError([plan.job.problem(("hostfile", "hosts"), message)])
    own = [host for host in hosts if is_loopback(host)]
    if own and len(hosts) > 1:
        message = f"{own[0]} means a different machine on each host: use a name by which the others reach it"
        raise JobError([plan.job.problem(("hostfile", "hosts"), message)])
    master = plan.job.hostfile.master_addr
    if master and is_loopback(master) and len(hosts) > 1:
        message = f"{master} means a different machine on each host: use the first host's address as the others see it"
        raise JobError([plan.job.problem(("hostfile", "master_addr"), message)])
    launcher = plan.job.hostfile.launcher
    if launcher != "torchrun" and "in_place" in plan.job.retry.model_fields_set and plan.job.retry.in_place:
        message = f"hostfile.launcher: {launcher} does not restart in place: use torchrun, or write 0"
        raise JobError([plan.job.problem(("retry", "in_place"), message)])
    if launcher == "pdsh":
        _check_pdsh(plan, hosts)
    return hosts


def _check_python(plan: Plan) -> None:
    """Reject a ``~`` that was expanded here and is another user's home on the hosts.

    Raises:
        JobError: names ``hostfile.python``.
    """
    user = _user(plan.job.hostfile.ssh_options)
    if user and plan.job.text_of("hostfile", "python").startswith("~"):
        message = f"~ is your home on this machine, and the hosts run Python as {user}: write the path in full"
        raise JobError([plan.job.problem(("hostfile", "python"), message)])


def _user(options: Sequence[str]) -> str:
    """Return the user whom the ssh options name: ``-l NAME``, ``-lNAME`` or ``-o User=NAME``; empty without one."""
    for option, following in zip(options, [*options[1:], ""], strict=False):
        if option == "-l":
            return following
        if found := re.fullmatch(r"-l(.+)|(?:-o)?\s*User[= ]\s*(\S+)", option, re.IGNORECASE):
            return found[1] or found[2]
    return ""


def _spares(plan: Plan, hosts: Sequence[str]) -> list[str]:
    section = plan.job.hostfile
    spares = expand_hosts(section.spare_hosts)
    problem = ""
    if spares and section.launcher != "torchrun":
        problem = f"hostfile.launcher: {section.launcher} does not use spare hosts: use torchrun, or remove them"
    elif twice := [host for host in spares if host in hosts]:
        problem = f"{twice[0]} is one of hostfile.hosts, too: list it once"
    elif own := [host for host in spares if is_loopback(host)]:
        problem = f"{own[0]} means a different machine on each host: use a name by which the others reach it"
    if problem:
        raise JobError([plan.job.problem(("hostfile", "spare_hosts"), problem)])
    return spares


def _check_pdsh(plan: Plan, hosts: Sequence[str]) -> None:
    """Reject values that pdsh would misread.

    It splits PDSH_SSH_ARGS_APPEND at white space without any quoting and expands %h, %u and %n in it; a colon in a
    host name separates it from the name of a module (pdsh(1), ENVIRONMENT VARIABLES and REMOTE COMMAND METHOD).

    Raises:
        JobError: names ``hostfile.ssh_options`` or ``hostfile.hosts``.
    """
    instead = "put it into ~/.ssh/config, or use hostfile.launcher: torchrun"
    problems = [
        plan.job.problem(("hostfile", "ssh_options", index), f"pdsh would not pass {option!r} as one word; {instead}")
        for index, option in enumerate(plan.job.hostfile.ssh_options)
        if re.search(r"[\s%]", option)
    ]
    problems += [
        plan.job.problem(("hostfile", "hosts"), f"pdsh does not accept an IPv6 address ({host}): use a name; {instead}")
        for host in hosts
        if ":" in host
    ]
    if problems:
        raise JobError(problems)


def _repeated(written: Sequence[str]) -> list[str]:
    parts = (part for entry in written for part in re.split(r",(?![^\[]*\])", entry))
    counts = Counter(host for part in parts for host in expand_hosts([part]))
    return [host for host, count in counts.items() if count > 1]


def _deepspeed_env(plan: Plan) -> str:
    problems, lines = [], []
    for name, value in plan.env.items():
        try:
            lines.append(deepspeed_env(name, value))
        except Unrepresentable as error:
            problems.append(plan.job.problem(("env", name), str(error)))
    if problems:
        raise JobError(problems)
    return "".join(lines)
