"""A real Slurm cluster of many hosts on one Linux machine: for tests, and by hand (``make slurm-lab``).

Every host is its own network, host name, mounts and process tree (Linux namespaces), so that nothing reaches
the machine's own network, hosts file or ssh keys, and several clusters stand side by side. All hosts live
inside one process tree whose root is the "switch": when that one process ends, the kernel ends every host with it.

    with Lab(nodes=2) as lab:
        job = lab.submit("#!/bin/sh\\nsrun hostname\\n", "--nodes=2")
        lab.wait_job(job, "COMPLETED", timeout=30)
        lab.crash("node2"); lab.boot("node2")

Needs root and the distribution's ``slurm-wlm munge iproute2`` (with ``ssh=True`` also ``openssh-server``).
"""

from tests.slurmlab.hosts import LabError
from tests.slurmlab.lab import Lab, missing

__all__ = ["Lab", "LabError", "missing"]
