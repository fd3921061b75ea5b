"""Targets kubernetes and helm. In reading order:

- ``decisions``, ``needs``: what is decided before any layout
- ``objects``, ``prepare``, ``evaluation``: the objects of the job, and the Jobs before and after it
- ``merge``, ``overlays``: the user's own fields
- ``object_checks``, ``pod_security``: what an API server would reject
- ``chart_values``, ``helm``: the same objects through the chart
"""
