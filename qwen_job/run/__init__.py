"""The contract between launcher and image: the folder of a run. In reading order:

- ``folder``: every file and folder of a run, by name
- ``sections``, ``config``: train.yaml, typed
- ``reading``: JSON that a shared folder may hold, read within limits
- ``metrics``, ``progress``, ``sweep_index``: metrics.jsonl; heartbeat and done.json; sweep.json
- ``pins``: sources.json;  ``scores``: evaluation.json
- ``owner``: the job that works in the folder
- ``manifest``: which checkpoint is complete, and which is the newest
- ``space``: what the folder holds already of the planned disk space
- ``lease``: one writer per folder;  ``ends``: how each node ended
- ``signals``: stop requests and the time limit
"""
