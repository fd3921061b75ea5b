"""Kubernetes: kubectl underneath, JSON in. In reading order:

- ``kubectl``: run kubectl, and read its refusals
- ``backend``: submit, status, logs and cancel
- ``state``, ``reasons``, ``pod_progress``: from objects to one line of status
- ``needed``: what a job refers to and expects to find in the cluster
- ``doctor``: what a cluster offers, and the site profile that follows
"""
