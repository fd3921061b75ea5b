"""Write docs/cli.md and docs/job.md from the code: ``python scripts/docs.py`` (``--check`` only compares)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from qwen_job.cli import COMMANDS, cli
from qwen_job.errors import RETRYABLE_FROM, table
from qwen_job.facts.train_settings import facts, schedulers
from qwen_job.job.schema import job_schema

DOCS = Path(__file__).resolve().parent.parent / "docs"


def cli_reference() -> str:
    """Return every command's --help, 100 columns wide."""
    parts = ["# Command line\n", "Written by `python scripts/docs.py` from the commands' own `--help`.\n"]
    root = click.Context(cli, info_name="qwen-job", terminal_width=100)
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        parts += _help(command, name, root)
    parts.append("## Exit codes\n")
    parts.append("| code | | error | meaning |\n|---|---|---|---|")
    for code, name, meaning in table():
        verdict = "retryable" if code >= RETRYABLE_FROM else "" if code == 0 else "final"
        parts.append(f"| {code} | {verdict} | {name} | {meaning} |")
    return "\n".join(parts) + "\n"


def _help(command: click.Command, name: str, parent: click.Context) -> list[str]:
    context = click.Context(command, info_name=name, parent=parent, terminal_width=100)
    level = "#" * (context.command_path.count(" ") + 1)
    parts = [f"{level} {context.command_path}\n", "```text", command.get_help(context).rstrip(), "```\n"]
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            sub = command.get_command(context, inner)
            assert sub is not None
            parts += _help(sub, inner, context)
    return parts


def job_reference() -> str:
    """Return a table of every field of job.yaml, section by section."""
    schema = job_schema()
    parts = ["# job.yaml\n", "Written by `python scripts/docs.py` from the types that check the file.\n"]
    parts += _section("Top level", schema, schema["$defs"])
    for name in (key for key in schema["properties"] if _reference(schema["properties"][key])):
        definition = schema["$defs"][_reference(schema["properties"][name])]
        parts += _section(f"`{name}`", definition, schema["$defs"])
        parts += _refused() if name == "train" else []
    for name, title in (
        ("DataFile", "An item of `data.train`"),
        ("Notify", "An item of `notify`"),
        ("Volume", "An item of `kubernetes.volumes`"),
    ):
        parts += _section(title, schema["$defs"][name], schema["$defs"])
    return "\n".join(parts) + "\n"


def _refused() -> list[str]:
    """Return what is fixed or refused under train, with the reasons."""
    parts = ["All other Hugging Face TrainingArguments have a fixed value or are rejected:\n"]
    parts.append("| field | fixed value | reason |\n|---|---|---|")
    for name, fact in facts()["fixed"].items():
        parts.append(f"| `{name}` | `{json.dumps(fact['value'])}` | {fact['reason']} |")
    parts += ["", "| field | rejected: reason, or what to use instead |\n|---|---|"]
    parts += [f"| `{name}` | {reason} |" for name, reason in facts()["owned"].items()]
    parts += ["", "`lr_scheduler_kwargs` by `lr_scheduler_type`:\n", "| type | keys | notes |\n|---|---|---|"]
    for name, takes in schedulers().items():
        keys = " ".join(f"`{key}`" for key in takes.get("keys", {}))
        notes = [f"needs {' or '.join(f'`{key}`' for key in takes['needs'])}"] if "needs" in takes else []
        notes += ["no warmup"] if not takes.get("warmup", True) else []
        notes += ["needs held-out rows"] if takes.get("evaluation") else []
        parts.append(f"| `{name}` | {keys} | {'; '.join(notes)} |")
    return [*parts, ""]


def _section(title: str, schema: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    schema = next((form for form in schema.get("anyOf", []) if "properties" in form), schema)
    parts = [f"## {title}\n"]
    if schema.get("description"):
        parts.append(schema["description"].replace("\n", " ") + "\n")
    parts.append("| field | type | default | |\n|---|---|---|---|")
    required = schema.get("required", [])
    for name, field in schema["properties"].items():
        if "const" in field:
            continue  # listed with its reason
        if "description" not in field and _reference(field) in definitions:
            field = {**field, "description": f"see `{name}` below"}
        default = "required" if name in required else _default(field)
        parts.append(f"| `{name}` | {_type(field)} | {default} | {field.get('description', '').replace('|', '/')} |")
    return [*parts, ""]


def _reference(field: dict[str, Any]) -> str:
    forms = [form for form in (field, *field.get("anyOf", [])) if "$ref" in form]
    return str(forms[0]["$ref"]).rpartition("/")[2] if len(forms) == 1 else ""


def _default(field: dict[str, Any]) -> str:
    value = field.get("default")
    if value is None or value in ({}, []):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " ".join(f"`{word}`" for word in field["enum"])
    if "anyOf" in field:
        return " or ".join(_type(form) for form in field["anyOf"] if form.get("type") != "null")
    if "$ref" in field:
        return "section"
    kind = str(field.get("type", "any"))
    return f"list of {_type(field['items'])}" if kind == "array" and "items" in field else kind


def main() -> int:
    """Write or compare the pages; 1 when one of them is out of date."""
    stale = 0
    for name, text in (("cli.md", cli_reference()), ("job.md", job_reference())):
        path = DOCS / name
        if "--check" not in sys.argv:
            path.write_text(text, "utf-8")
        elif not path.exists() or path.read_text("utf-8") != text:
            print(f"docs/{name} is out of date: python scripts/docs.py writes it", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
