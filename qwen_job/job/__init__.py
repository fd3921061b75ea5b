"""The Job: its types, loading, layering, ``--set``, and errors that name file, line and field."""

import qwen_job.job.fast_pydantic  # noqa: F401  # before pydantic

# isort: split
from qwen_job.job.job import Job
from qwen_job.job.load import load_job

__all__ = ["Job", "load_job"]
