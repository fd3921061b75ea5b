"""What a plan costs, estimated before anything runs. In reading order:

- ``layout``: one way to lay a model over GPUs, which both estimates depend on
- ``activations``, ``memory``: bytes per GPU, per host and on disk
- ``speed``: the time of a step, as a range
- ``constants``: a cluster's own constants for both
- ``calibrate``: the constants of a cluster, fitted to its finished runs
"""
