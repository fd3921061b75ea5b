"""A real Slurm cluster of many hosts on one Linux machine, for tests and for use by hand (``make slurm-lab``).

Every host has its own network, host name, mounts and process tree (Linux namespaces), so the machine's own network,
hosts file and ssh keys are never touched, and several clusters can run side by side. All hosts belong to one process
tree, whose root is the "switch": when that process ends, the kernel ends all hosts.

    with Lab(nodes=2) as lab:
        job = lab.submit("#!/bin/sh\\nsrun hostname\\n", "--nodes=2")
        lab.wait_job(job, "COMPLETED", timeout=30)
        lab.crash("node2"); lab.boot("node2")

Needs root and the distribution's ``slurm-wlm munge iproute2`` (with ``ssh=True`` also ``openssh-server``).
"""

from tests.slurmlab.hosts import LabError
from tests.slurmlab.lab import Lab, missing

__all__ = ["Lab", "LabError", "missing"]
