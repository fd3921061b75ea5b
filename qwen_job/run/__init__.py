"""The folder of a run, which the launcher writes and the image reads. In reading order:

- lease: one writer a folder
- ends: how each node ended, for when its pod is gone
"""
