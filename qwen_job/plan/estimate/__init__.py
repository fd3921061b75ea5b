"""Estimates of memory and time. In reading order:

- ``layout``: how a model is distributed over GPUs, the input of both estimates
- ``activations``, ``memory``: bytes per GPU, per host and on disk
- ``speed``: the time of a step, as a range
- ``constants``: the constants for one cluster
- ``calibrate``: the constants of a cluster, fitted to its finished runs
"""
