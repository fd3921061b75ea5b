"""Choosing ZeRO stage, offload, checkpointing and micro-batch. In reading order:

- ``choice``: every combination judged, and the fastest that fits
- ``sharding``: the search for a job
- ``nearest``: the nearest jobs that work, when nothing fits
- ``smallest``: the smallest cluster for a job
"""
