"""Kubernetes: kubectl underneath, JSON in. In reading order:

- ``kubectl``: running kubectl, and what its refusals mean
- ``backend``: submit, status, logs and cancel
- ``state``, ``pods``, ``events``, ``progress``: from objects to one line of status
- ``needed``: what a job refers to and does not bring along
- ``doctor``: what a cluster offers, and the site profile that follows
"""
