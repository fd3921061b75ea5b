"""Turn a run into pages for people. Nothing here imports torch. In reading order:

- ``summary``: a run in numbers; ``timeline``: its attempts, and where the wall time went
- ``plot``: curves as SVG; ``page``: report.html
- ``model_card``: model/README.md, and how to use the model
- ``closing``: write both at the end of a run
"""
