"""The functions of ``import qwen_job``, which the command line calls. In reading order:

- ``jobs``: ``load_job``, ``plan_job``, ``render_job``: from files to a rendered job, without a cluster
- ``job_template``, ``plan_count``: what planning reads of the chat template and the data on this machine
- ``submission``: ``submit_job``, and several at once
- ``following``: ``follow_job``

``read_metrics`` is that of :mod:`qwen_job.run.metrics`. :mod:`qwen_job` hands all of them out when they are first used.
"""
