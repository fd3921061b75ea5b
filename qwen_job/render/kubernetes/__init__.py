"""Targets kubernetes and helm. In reading order:

- ``settings``, ``needs``: what is decided before any layout
- ``manifest``, ``prepare``: the objects of the job, and the Job that prepares its data
- ``merge``, ``overlays``: the user's own fields
- ``check``, ``pod_security``: what an API server would reject
- ``chart_values``, ``helm``: the same objects through the chart
"""
