"""Turn a run into pages for people. Nothing here imports torch. In reading order:

- ``summary``: a run in numbers; ``timeline``: its attempts, and where the wall time went
- ``plot``: curves as SVG; ``frame``: what every page has in common; ``page``: report.html
- ``sweep_page``: all runs of a sweep; ``browse``: all runs below a folder, in a browser
- ``live``: the process that keeps the page current while training; ``exposition``: figures for Prometheus;
  ``trainjob``: progress for Kubeflow
- ``card_head``: what hubs read at the head of a model card
- ``model_card``: model/README.md, and how to use the model
- ``closing``: write both at the end of a run
"""
