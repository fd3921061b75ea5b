"""The JSON Schema of job.yaml, and the entry with which SchemaStore hands it to editors."""

from __future__ import annotations

from typing import Any

from qwen_job.facts.train_settings import facts
from qwen_job.job.job import Job
from qwen_job.text import json_text

# Where the committed schemas are read from.
ADDRESS = "https://raw.githubusercontent.com/qwen-job/qwen-job/main/configs"
_KINDS = {"bool": "boolean", "int": "integer", "float": "number", "str": "string", "dict": "object", "list": "array"}
_NEEDS = {
    "evaluation": "held-out rows (data.eval or data.eval_split)",
    "workers": "dataloader_num_workers of 1 or more",
    "torch_compile": "torch_compile: true",
    "gpu": "a GPU",
    "ampere": "a GPU of compute capability 8.0 or more",
    "trackio": "trackio in report_to",
}


def job_schema() -> dict[str, Any]:
    """Return a draft 2020-12 schema: pydantic's, plus the short forms that the models accept."""
    schema = Job.model_json_schema(mode="validation")
    definitions = schema["$defs"]
    _accept(definitions, "Model", [{"type": "string"}])
    _accept(definitions, "DataFile", [{"type": "string"}])
    _accept(definitions, "Data", [{"type": "string"}, {"type": "array", "items": {"$ref": "#/$defs/DataFile"}}])
    _accept(definitions, "Suite", [{"type": "string"}, {"type": "array", "items": {"type": "string"}}])
    _accept_one(definitions["Suite"]["anyOf"][-1]["properties"], "tasks")
    _accept_one(definitions["Data"]["anyOf"][-1]["properties"], "train")
    _accept_one(definitions["Data"]["anyOf"][-1]["properties"], "eval")
    _accept_one(definitions["Hostfile"]["properties"], "hosts")
    _accept_one(definitions["Train"]["properties"], "report_to")
    _accept_scalars(schema["properties"]["env"])
    _accept_scalars(definitions["Slurm"]["properties"]["sbatch"])
    _accept_scalars(definitions["Slurm"]["properties"]["srun"])
    for name in ("labels", "annotations", "node_selector"):
        _accept_scalars(definitions["Kubernetes"]["properties"][name])
    definitions["Slurm"]["properties"]["memory"]["anyOf"].append({"const": 0})
    # Both forms of a sweep: {train.seed: [1, 2]} and {train: {seed: [1, 2]}}.
    schema["properties"]["sweep"]["additionalProperties"] = {
        "anyOf": [{"type": "array", "minItems": 1}, {"type": "object"}]
    }
    train = definitions["Train"]
    train["properties"] |= {name: _setting(fact) for name, fact in facts()["accepted"].items()}
    train["properties"] |= {name: {"const": fact["value"]} for name, fact in facts()["fixed"].items()}
    train["additionalProperties"] = False
    for section, name in (("Kubernetes", "active_deadline"), ("Kubernetes", "ttl_after_finished")):
        _accept_text(definitions[section]["properties"], name)
    _accept_text(definitions["Retry"]["properties"], "grace")
    _describe(schema)
    return _headed(schema, "job", "qwen-job job.yaml", "A fine-tuning job of qwen-job")


def _headed(schema: dict[str, Any], name: str, title: str, description: str) -> dict[str, Any]:
    """Return the schema with what identifies it; the keys come first, where a reader looks for them."""
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"{ADDRESS}/{name}.schema.json",
        "title": title,
        "description": description,
    }
    return {**head, **{key: value for key, value in schema.items() if key not in head}}


def _describe(schema: dict[str, Any]) -> None:
    """Describe each section by its own first sentence, and each setting of TrainingArguments by what it takes."""
    definitions = schema["$defs"]
    for field in schema["properties"].values():
        section = str(field.get("$ref", "")).rpartition("/")[2]
        if section and "description" not in field:
            field["description"] = definitions[section]["description"].partition("\n")[0]
    for name, field in definitions["Train"]["properties"].items():
        always = f"; always {json_text(field['const'])} here" if "const" in field else ""
        field.setdefault("description", f"{name} of Hugging Face's TrainingArguments{always}")


def catalog_entry() -> dict[str, Any]:
    """Return the entry for SchemaStore's catalog: editors that use it then know job files by their names.

    job.yaml alone is too common a name for a catalog of all programs; a first line in the file names the schema there.
    """
    return {
        "name": "qwen-job",
        "description": "A fine-tuning job of qwen-job",
        "fileMatch": ["qwen-job.yaml", "qwen-job.yml", "*.qwen-job.yaml", "*.qwen-job.yml"],
        "url": f"{ADDRESS}/job.schema.json",
    }


def _setting(fact: dict[str, Any]) -> dict[str, Any]:
    """Describe one TrainingArguments setting: its type, or its allowed values."""
    words = {"least": "minimum", "most": "maximum", "over": "exclusiveMinimum", "below": "exclusiveMaximum"}
    limits = {word: fact[name] for name, word in words.items() if name in fact}
    kind = {"enum": fact["choices"]} if "choices" in fact else {"type": _KINDS[fact["kind"]], **limits}
    return {**kind, **({"description": f"Needs {_NEEDS[fact['needs']]}"} if "needs" in fact else {})}


def site_schema() -> dict[str, Any]:
    """Return the schema of a site profile: a layer, so nothing is required."""
    schema = job_schema()
    schema.pop("required", None)
    schema["$defs"]["Cluster"].pop("required", None)
    return _headed(schema, "site", "qwen-job site profile", "Defaults of a cluster, which job.yaml overrides")


def _accept(definitions: dict[str, Any], name: str, forms: list[dict[str, Any]]) -> None:
    definitions[name] = {"anyOf": [*forms, definitions[name]]}


def _accept_one(properties: dict[str, Any], name: str) -> None:
    """Allow a single item in place of a list."""
    field = properties[name]
    properties[name] = {
        **{key: field[key] for key in ("title", "description", "default") if key in field},
        "anyOf": [{key: field[key] for key in ("type", "items", "minItems") if key in field}, field["items"]],
    }


def _accept_scalars(field: dict[str, Any]) -> None:
    """Allow numbers and booleans as text."""
    scalar = {"type": ["number", "boolean"]}
    for pattern, form in field.get("patternProperties", {}).items():
        field["patternProperties"][pattern] = {"anyOf": [form, scalar]}
    if "additionalProperties" in field:
        field["additionalProperties"] = {"anyOf": [field["additionalProperties"], scalar]}


def _accept_text(properties: dict[str, Any], name: str) -> None:
    """Allow durations as text (2h30m) or in seconds."""
    field = properties[name]
    options = field.setdefault("anyOf", [{key: field.pop(key) for key in ("type", "minimum") if key in field}])
    options.append({"type": "string"})
