"""The files of the lab's etc/ folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.slurmlab.hosts import NETWORK, NETWORK_6

CONTROLLER = "ctl"
CONTROLLER_NUMBER = 254
GPUS = 8
# Many sites do not use port 22, and with the default port a test could not see a lost option.
SSH_PORT = 2222


@dataclass(frozen=True)
class Shape:
    """The layout of the cluster; ``extra_conf`` is appended to slurm.conf unchanged.

    With ``nameless`` the network is IPv6 only and no host name resolves, so Slurm is given addresses.
    """

    nodes: int = 2
    gpu_type: str = "h100"
    extra_conf: str = ""
    nameless: bool = False
    # A requeued job waits until its old credential expires: Slurm's default is 120 s, too long for a test.
    cred_expire: int = 5

    @property
    def names(self) -> list[str]:
        """Return the names of the compute nodes."""
        return [f"node{number}" for number in range(1, self.nodes + 1)]

    def address(self, name: str) -> str:
        """Return the address of a host."""
        number = CONTROLLER_NUMBER if name == CONTROLLER else int(name.removeprefix("node"))
        return f"{NETWORK_6 if self.nameless else NETWORK}{number}"


def write(root: Path, shape: Shape, *, shared: list[Path], ssh: bool) -> None:
    """Write all files that the hosts of the lab at ``root`` read."""
    for folder in ("etc/slurm", "log", "pids", "state", "dev", "munge", "mnt"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    named = [] if shape.nameless else [CONTROLLER, *shape.names]
    hosts = ["127.0.0.1 localhost", *(f"{shape.address(name)} {name}" for name in named)]
    (root / "etc/hosts").write_text("\n".join(hosts) + "\n")
    (root / "etc/shared").write_text("".join(f"{path}\n" for path in _under_tmp([root, *shared])))
    (root / "etc/slurm/slurm.conf").write_text(slurm_conf(root, shape))
    # A GPU needs a device file, or its node goes into state INVAL. 1:3 is /dev/null.
    for number in range(GPUS):
        os.mknod(root / f"dev/nvidia{number}", 0o20666, os.makedev(1, 3))
    gres = f"Name=gpu Type={shape.gpu_type} File={root}/dev/nvidia[0-{GPUS - 1}]\n"
    (root / "etc/slurm/gres.conf").write_text(gres)
    key = root / "munge/key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    if ssh:
        _write_ssh(root)


def _under_tmp(paths: list[Path]) -> list[Path]:
    """Return the folders that a host's own /tmp would hide, outermost first, without those inside another."""
    kept: list[Path] = []
    for path in sorted({path.resolve() for path in paths}):
        if path.is_relative_to("/tmp") and not any(path.is_relative_to(outer) for outer in kept):
            kept.append(path)
    return kept


def _write_ssh(root: Path) -> None:
    """Create host and user keys for the lab, so that no ~/.ssh is read or written."""
    for key in ("ssh_host_key", "id_ed25519"):
        command = [
            shutil.which("ssh-keygen") or "ssh-keygen",
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-f",
            str(root / "etc" / key),
        ]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=30)
    (root / "etc/ssh_config").write_text(
        f"Host *\n IdentityFile {root}/etc/id_ed25519\n IdentitiesOnly yes\n StrictHostKeyChecking no\n"
        f" UserKnownHostsFile /dev/null\n GlobalKnownHostsFile /dev/null\n LogLevel ERROR\n"
    )
    (root / "etc/sshd_config").write_text(
        f"HostKey {root}/etc/ssh_host_key\nAuthorizedKeysFile {root}/etc/id_ed25519.pub\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nUsePAM no\n"
        f"PidFile none\nStrictModes no\nMaxStartups 100\nPort {SSH_PORT}\n"
    )


def slurm_conf(root: Path, shape: Shape) -> str:
    """Return slurm.conf: ``main`` is the default partition, and jobs in ``high`` preempt its jobs."""
    nodes = f"node[1-{shape.nodes}]"
    known = f"NodeAddr={NETWORK_6}[1-{shape.nodes}]" if shape.nameless else ""
    families = "CommunicationParameters=EnableIPv6,DisableIPv4\n" if shape.nameless else ""
    return f"""\
ClusterName=lab
SlurmctldHost={CONTROLLER}({shape.address(CONTROLLER)})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire={shape.cred_expire}
SlurmctldPidFile={root}/pids/slurmctld.daemon
SlurmdPidFile={root}/pids/slurmd.%n.daemon
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobCompType=jobcomp/filetxt
JobCompLoc={root}/log/jobcomp.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Without it a job gets all of a node's memory.
DefMemPerCPU=500
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
ReturnToService=2
SlurmdTimeout=6
MessageTimeout=5
KillWait=5
MinJobAge=7200
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Lets a small machine pose as nodes with 16 cores.
SlurmdParameters=config_overrides
GresTypes=gpu
{families}NodeName={nodes} {known} CPUs=16 Boards=1 SocketsPerBoard=2 CoresPerSocket=8 ThreadsPerCore=1 \
RealMemory=16000 Gres=gpu:{shape.gpu_type}:{GPUS} Feature={shape.gpu_type} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
{shape.extra_conf}"""
