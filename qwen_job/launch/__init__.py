"""Submit, status, logs and cancel: the only room that talks to a cluster. In reading order:

- ``backend``: the interface of a target; ``slurm``, ``kubernetes``, ``local``: its implementations
- ``index``: the user's own list of submissions; ``queues``: the queues of all targets; ``find``: jobs by name or id
- ``outcomes``: the runs of a sweep; ``outputs``: written bundles and logs
- ``host_lists``: hostfile.hosts from elsewhere
"""
