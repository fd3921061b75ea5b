"""Read the file of ``qwen-job chat --tools``: a list of functions as OpenAI's API describes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_job import strict_json
from qwen_job.data.calls import read_tools
from qwen_job.data.keys import RecordError
from qwen_job.errors import UsageError


def tools_in(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Return the tools of a JSON file: one of them, a list, or an object with the key ``tools``.

    Raises:
        UsageError: naming the file and what is wrong in it.
    """
    try:
        value = strict_json.load(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"--tools: {path}: {getattr(error, 'strerror', None) or error}") from None
    if isinstance(value, dict):
        value = value.get("tools", value)
    try:
        tools = read_tools(value, "tools")
    except RecordError as error:
        raise UsageError(f"--tools: {path}: {error}") from None
    if not tools:
        raise UsageError(f"--tools: {path}: holds no tool")
    return tools
