"""qwen-job: one job.yaml to a fully fine-tuned Qwen-Chat model, on whatever cluster there is.

The functions that the command line itself calls, from a job file to the figures of a run:

- :func:`load_job`, :func:`plan_job`, :func:`render_job`: no cluster is asked
- :func:`submit_job`, :func:`follow_job`: with the cluster
- :func:`read_metrics`: the figures of a run, from its folder

Each is imported when it is first used, so that ``import qwen_job`` costs nothing. They and job.yaml follow semantic
versioning; other modules are ours and may change (docs/python.md).
"""

from importlib import import_module

__version__ = "0.2.0"

# name -> module. __init__.pyi says the same to a type checker; a test compares them.
_PUBLIC = {
    "load_job": "qwen_job.api.jobs",
    "plan_job": "qwen_job.api.jobs",
    "render_job": "qwen_job.api.jobs",
    "submit_job": "qwen_job.api.submission",
    "follow_job": "qwen_job.api.following",
    "read_metrics": "qwen_job.run.metrics",
    "Job": "qwen_job.job.job",
    "Plan": "qwen_job.plan.plan",
    "Bundle": "qwen_job.render.bundle",
    "Submitted": "qwen_job.launch.backend",
    "Look": "qwen_job.launch.find",
    "QwenJobError": "qwen_job.errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'qwen_job' has no attribute {name!r}; it has {', '.join(_PUBLIC)}")
    globals()[name] = value = getattr(import_module(_PUBLIC[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
