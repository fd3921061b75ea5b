"""Which version of each data set by name a run trains on: the records in its sources.json.

A record has ``version``, ``commit`` (of a hub, else null) and ``files``, each with ``path``, ``size`` and its hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_job.run.reading import read_object
from qwen_job.storage import stays_below


def pin_key(name: str, revision: object) -> str:
    """Return the name and the revision asked for, as the file lists them."""
    return f"{name} @ {revision}" if revision else name


def read_pins(path: Path) -> dict[str, Mapping[str, Any]]:
    """Return a run's records by :func:`pin_key`; a damaged file has none, and resuming then compares the rows."""
    listed = read_object(path).get("sources")
    found = {key: valid_record(one) for key, one in listed.items()} if isinstance(listed, dict) else {}
    return {key: one for key, one in found.items() if one}


def pin_at_any_revision(pins: Mapping[str, Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    """Return the first record of a name, whatever revision was asked for; None without one."""
    return next((pin for key, pin in pins.items() if key == name or key.startswith(f"{name} @ ")), None)


def valid_record(record: object) -> Mapping[str, Any] | None:
    """Return a record if it has the form that is written here."""
    if not isinstance(record, dict) or not isinstance(version := record.get("version"), str):
        return None
    files = record.get("files")
    commit = record.get("commit")
    if not version.isalnum() or not isinstance(files, list) or not files or commit not in (None, version):
        return None
    for file in files:
        if not isinstance(file, dict) or not isinstance(path := file.get("path"), str):
            return None
        if not stays_below(path) or not isinstance(file.get("size"), int):
            return None
    return record
