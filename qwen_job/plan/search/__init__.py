"""Choose ZeRO stage, offload, checkpointing and micro-batch. In reading order:

- ``question``: what is asked: a model, its GPUs, what the job fixes
- ``choice``: every combination evaluated, and the fastest that fits
- ``sharding``: the search for a job
- ``nearest``: the nearest jobs that fit, if this one does not
- ``smallest``: the smallest cluster for a job
"""
