"""The Job: its types, loading, layering, ``--set``, and errors that name file, line and field."""

from qwen_job.job.load import load_job
from qwen_job.job.model import Job

__all__ = ["Job", "load_job"]
