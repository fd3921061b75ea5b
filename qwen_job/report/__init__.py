"""What is left of a run for people to read. Nothing here imports torch. In reading order:

- ``summary``, ``timeline``: a run in numbers, and where its time went
- ``plot``, ``page``: curves, and report.html
- ``model_card``, ``afterwards``, ``closing``: model/README.md and the last lines of a run
"""
