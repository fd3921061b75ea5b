"""The text that ``qwen-job --version`` prints."""

from qwen_job import __version__


def version_text() -> str:
    """Return the version, followed by the versions of the training stack if installed."""
    from qwen_job.node.versions import stack_versions

    stack = stack_versions()
    inside = ", ".join(f"{name} {version}" for name, version in stack.items())
    return f"qwen-job {__version__}" + (f" ({inside})" if inside else "")
