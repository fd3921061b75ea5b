"""What the chart says of itself: Chart.yaml and the table of values in its README. scripts/chart.py writes both."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from qwen_job import __version__
from qwen_job.render.quote import to_yaml

ROOT = Path(__file__).resolve().parents[1]
HOME = "https://github.com/qwen-job/qwen-job"
IMAGE = "ghcr.io/qwen-job/qwen-job"
DESCRIPTION = "Full fine-tuning of a Qwen chat model on one or more nodes, as a PyTorchJob, TrainJob or JobSet"
SETS = ("ampere", "cuda12", "v100", "cpu")
VALUES = "## Values\n"
# Sections whose fields have a row each; the others are mappings with keys of the user's.
SECTIONS = ("cluster", "kubernetes")


def chart_yaml() -> str:
    """Return Chart.yaml of this version, with what Artifact Hub shows (artifacthub.io/docs/topics/annotations/helm)."""
    images = [{"name": name, "image": f"{IMAGE}:v{__version__}-{name}"} for name in SETS]
    links = [
        {"name": "Guide", "url": f"{HOME}/blob/main/docs/kubernetes.md"},
        {"name": "Examples", "url": f"{HOME}/blob/main/docs/examples.md"},
    ]
    return to_yaml(
        {
            "apiVersion": "v2",
            "name": "qwen-job",
            "description": DESCRIPTION,
            "type": "application",
            "version": __version__,
            "appVersion": __version__,
            "kubeVersion": ">=1.27.0-0",
            "home": HOME,
            "icon": f"https://raw.githubusercontent.com/qwen-job/qwen-job/v{__version__}/charts/qwen-job/icon.svg",
            "sources": [HOME, f"{HOME}/tree/v{__version__}/charts/qwen-job"],
            "maintainers": [{"name": "the qwen-job authors", "url": HOME}],
            "keywords": ["qwen", "fine-tuning", "deepspeed", "kubeflow", "jobset", "kueue"],
            "annotations": {
                "artifacthub.io/category": "ai-machine-learning",
                "artifacthub.io/license": "Apache-2.0",
                "artifacthub.io/images": to_yaml(images),
                "artifacthub.io/links": to_yaml(links),
                "artifacthub.io/changes": to_yaml(changes((ROOT / "CHANGELOG.md").read_text("utf-8"))),
            },
        }
    )


def changes(changelog: str) -> list[str]:
    """Return this version's entries under the heading Chart, each on one line and without markup."""
    version = re.search(rf"(?ms)^## {re.escape(__version__)}\b(.*?)(?:^## |\Z)", changelog)
    found = re.search(r"(?ms)^Chart\n(.*?)(?:\n\n|\Z)", version[1]) if version else None
    entries = re.split(r"(?m)^- ", found[1])[1:] if found else []
    return [" ".join(entry.split()).replace("`", "") for entry in entries]


def readme(text: str, schema: dict[str, Any], values: dict[str, Any]) -> str:
    """Return the chart's README with a table of every value after its text.

    Args:
        text: README.md so far; what follows the heading Values is replaced.
        schema: values.schema.json.
        values: values.yaml.
    """
    rows = []
    for name, field in schema["properties"].items():
        if name == "global":
            continue
        inner = schema["$defs"].get(_reference(field), {}).get("properties", {}) if name in SECTIONS else {}
        if inner:
            rows += [_row(f"{name}.{key}", one, values[name].get(key)) for key, one in inner.items()]
        else:
            rows.append(_row(name, field, values.get(name)))
    head = "Written by `scripts/chart.py`. `config` holds the planned files: `qwen-job render --target helm`.\n"
    table = ["| key | type | default | |", "|---|---|---|---|", *rows]
    return text.partition(VALUES)[0] + VALUES + "\n" + head + "\n" + "\n".join(table) + "\n"


def _row(name: str, field: dict[str, Any], default: Any) -> str:
    shown = "" if name == "config" else f"`{json.dumps(_without_nulls(default), ensure_ascii=False)}`"
    about = field.get("description", "").replace("|", "/").replace("``", "`")
    cells = (f"`{name}`", _type(field), shown, about)
    return "| " + " | ".join(cells) + " |"


def _without_nulls(value: Any) -> Any:
    """Leave the unset fields of a list's items out."""
    if not isinstance(value, list):
        return value
    return [{key: one for key, one in item.items() if one is not None} for item in value]


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " ".join(f"`{word}`" for word in field["enum"])
    forms = [form for form in field.get("anyOf", []) if form.get("type") != "null"]
    if forms:
        return " or ".join(dict.fromkeys(map(_type, forms)))
    kind = field.get("type", "object")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _reference(field: dict[str, Any]) -> str:
    forms = [form for form in (field, *field.get("allOf", []), *field.get("anyOf", [])) if "$ref" in form]
    return str(forms[0]["$ref"]).rpartition("/")[2] if len(forms) == 1 else ""
