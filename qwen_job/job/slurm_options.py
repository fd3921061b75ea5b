"""The names of sbatch and srun options: short names, which take a value, and suggestions for mistakes."""

from __future__ import annotations

import re

# Long names of Slurm 20.11 to 25.05. A site's plugins (SPANK) add others, so an unknown name may be valid.
_WITH_VALUE = """
accel-bind account acctg-freq array batch bb bbf bcast-exclude begin chdir cluster-constraint clusters comment
constraint container container-id core-spec cores-per-socket cpu-bind cpu-freq cpus-per-gpu cpus-per-task deadline
delay-boot dependency distribution epilog error exclude export export-file external-launcher extra extra-node-info
gid gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags het-group hint input job-name
jobid kill-on-invalid-dep licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus mpi
msg-timeout network nodefile nodelist nodes ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket
oom-kill-step open-mode output partition power prefer priority profile prolog qos relative reservation
resources-per-job segment signal slurmd-debug sockets-per-node switches task-epilog task-prolog thread-spec threads
threads-per-core time time-min tmp treewidth tres-bind tres-per-job tres-per-task uid wait-all-nodes
wait-for-children wckey wrap
"""
_WITHOUT = """
consolidate-segments contiguous disable-status exact help hold ignore-pbs label multi-prog no-allocate no-bell
no-requeue no-shell overcommit overlap oversubscribe parsable preserve-env pty quiet quit-on-interrupt reboot
requeue spread-job stepmgr test-only unbuffered usage use-min-nodes verbose version whole
"""
# With or without a value; wait is a flag in sbatch and a number in srun.
_EITHER_WAY = """
bcast bell compress exclusive get-user-env immediate kill-on-bad-exit nice no-kill propagate resv-ports send-libs
share wait x11
"""
_VALUE, _FLAG = frozenset(_WITH_VALUE.split()), frozenset(_WITHOUT.split())
KNOWN = frozenset({*_VALUE, *_FLAG, *_EITHER_WAY.split()})
_SHORT = {
    "A": "account", "a": "array", "B": "extra-node-info", "b": "begin", "C": "constraint", "c": "cpus-per-task",
    "D": "chdir", "d": "dependency", "E": "preserve-env", "e": "error", "F": "nodefile", "G": "gpus", "H": "hold",
    "h": "help", "I": "immediate", "i": "input", "J": "job-name", "K": "kill-on-bad-exit", "k": "no-kill",
    "L": "licenses", "l": "label", "M": "clusters", "m": "distribution", "N": "nodes", "n": "ntasks", "O": "overcommit",
    "o": "output", "p": "partition", "Q": "quiet", "q": "qos", "r": "relative", "S": "core-spec", "s": "oversubscribe",
    "T": "threads", "t": "time", "u": "unbuffered", "V": "version", "v": "verbose", "W": "wait", "w": "nodelist",
    "X": "disable-status", "x": "exclude", "Z": "no-allocate",
}  # fmt: skip
# Options that have their own field in ``slurm``.
FIELDS = {
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint",
    "reservation": "reservation", "time": "time", "mem": "memory", "cpus-per-task": "cpus_per_task",
    "exclusive": "exclusive",
}  # fmt: skip


def option_name(name: str) -> str:
    """Return an option's long name without dashes.

    Raises:
        ValueError: the name has another form; suggests the right one.
    """
    bare = name.removeprefix("--")
    if len(bare.lstrip("-")) == 1:
        long = _SHORT.get(bare.lstrip("-"))
        where = f", or the field slurm.{FIELDS[long]}" if long in FIELDS else ""
        raise ValueError(f"{name!r} is a short option: write the long name{f', {long}' if long else ''}{where}")
    meant = re.sub(r"[^A-Za-z0-9-]+", "-", bare).strip("-")
    if meant.lower() in KNOWN:
        meant = meant.lower()
    if meant != bare or not bare:
        raise ValueError(f"{name!r} is not a valid option name: write {meant or 'it like mail-type'}")
    if bare not in KNOWN and (longer := sorted(known for known in KNOWN if known.startswith(bare))):
        raise ValueError(f"{name!r} is an abbreviated option: write the full name, e.g. {longer[0]}")
    return bare


def value_problem(option: str, value: str | bool | None) -> str:
    """Return the problem with this value of an option (true and null mean no value), or an empty string."""
    if value is False:
        return ""
    if option in _VALUE and not isinstance(value, str):
        return "needs a value"
    if option in _FLAG and isinstance(value, str):
        return f"takes no value: write true instead of {value[:40]!r}"
    return ""
