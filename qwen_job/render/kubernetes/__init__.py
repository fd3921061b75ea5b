"""Targets kubernetes and helm. In reading order:

- ``settings``, ``needs``: what a render decides before any layout
- ``manifest``, ``prepare``: the objects of the job, and of the Job that prepares its data
- ``merge``, ``overlays``: the user's own fields
- ``check``, ``pod_security``: what an API server would refuse
- ``chart_values``, ``helm``: the same objects through the chart
"""
