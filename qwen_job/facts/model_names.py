"""How models are named, in job.yaml, in the reference script's flags, in ``model fetch`` and on the node.

A name that starts like a path (/, ./, ../, ~) is a folder; with ``source: random`` it is a file of facts/models;
anything else is a hub ID, owner/name. In an ID, surrounding white space and slashes (``Qwen/Qwen-1_8B-Chat/``) and
double slashes are ignored.
"""

from __future__ import annotations

import re

# Compiled (and cached by re) at first use: every command with a job imports this module.
_ID = r"(?a:[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)"
_ADDRESS = (
    r"(?:https?://)?(?:www\.)?(?:modelscope\.(?:cn|ai)/(?:models/)?|hf-mirror\.com/|huggingface\.co/|hf\.co/)"
    r"([^/\s]+/[^/\s?#]+)\S*"
)


_QWEN1 = r"(?i)(^|[/-])qwen-[0-9]"


def is_qwen1_id(name: str) -> bool:
    """Return whether a hub id is one of the first generation: Qwen-7B, but not Qwen1.5-7B."""
    return re.search(_QWEN1, name) is not None


def resolve_source(name: str, source: str) -> str:
    """Return the source of ``name``, with ``auto`` resolved."""
    if source != "auto":
        return source
    name = name.strip()
    return "local" if name.startswith(("/", "./", "../", "~")) or name in (".", "..") else "modelscope"


def clean_name(name: str, source: str) -> str:
    """Return the one spelling of a model's name; folders and names in qwen_job/facts/models stay as they are.

    Raises:
        ValueError: a hub id is not owner/name; the message says what to write.
    """
    if resolve_source(name, source) not in ("modelscope", "huggingface"):
        return name
    clean = re.sub("/{2,}", "/", name.strip()).strip("/") if "://" not in name else name.strip()
    if re.fullmatch(_ID, clean):
        return clean
    if found := re.fullmatch(_ADDRESS, clean):
        raise ValueError(f"{name!r} is an address; write {found[1]!r}, and the hub as model.source")
    raise ValueError(
        f"{name!r} is not a hub ID: write owner/name, e.g. Qwen/Qwen-1_8B-Chat; for a folder, write "
        f"{'./' + clean if clean else './model'!r}, or model.source: local ('model fetch' has --source local)"
    )
