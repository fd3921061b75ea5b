"""Write the reference pages of docs/ from the code: ``python scripts/docs.py`` (``--check`` only compares)."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import click

from qwen_job.cli import COMMANDS, cli
from qwen_job.cli.docs import opening
from qwen_job.errors import RETRYABLE_FROM, table
from qwen_job.facts import fact as facts_path
from qwen_job.facts.lookup import read_facts
from qwen_job.facts.model_shapes import load_model_shape
from qwen_job.facts.train_settings import facts, schedulers
from qwen_job.job.schema import job_schema

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from scripts.gallery import examples_page  # noqa: E402

MODEL_PAGE = {
    "en": {
        "head": """\
# Models by name

[English](models.md) · [中文](models.zh-CN.md)

Written by `python scripts/docs.py` from `qwen_job/facts/models/`.

The plan knows the exact sizes of these models, so `qwen-job plan` needs only the name. Base models have the sizes of
their chat models. Of Qwen3.5, 3.6 and 3.8 the text model counts: the vision tower and the heads for multi-token
prediction are not trained. Active parameters are those that one token passes. Layers are their number x the hidden
size, with the experts of each layer and how many of them a token passes.
""",
        "columns": "| model | type | parameters | active | layers | vocabulary | positions | reasoning |",
        "experts": ", {count} experts ({per_token})",
        "none": "no",
        "always": "always",
        "switch": "on or off",
        "tail": """\
A model that is not in the table needs a local folder with its `config.json`: `--set model=/path/to/folder`. Official
models that cannot be trained are refused by name, with the reason: vision-language, speech and retrieval models, reward
models, Qwen3-Next, Qwen3.8-Flash-Next, and quantized copies (AWQ, GPTQ, FP8, GGUF), of which you use the full-precision
original.
""",
    },
    "zh": {
        "head": """\
# 按名称可用的模型

[English](models.md) · [中文](models.zh-CN.md)

由 `python scripts/docs.py` 根据 `qwen_job/facts/models/` 生成。

规划知道这些模型的准确规模，因此 `qwen-job plan` 只需要名称。Base 模型与对应的 Chat 模型规模相同。
Qwen3.5、3.6 和 3.8 只计文本模型：视觉编码器和多 token 预测头不参与训练。激活参数量是一个 token 经过的参数量。
“层”一列是层数 x 隐藏维度，以及每层的专家数，括号内为每个 token 经过的专家数。
""",
        "columns": "| 模型 | 类型 | 参数量 | 激活参数量 | 层 | 词表 | 位置数 | 思考 |",
        "experts": "，{count} 个专家（{per_token}）",
        "none": "无",
        "always": "始终",
        "switch": "可开关",
        "tail": """\
表中没有的模型需要本地目录及其 `config.json`：`--set model=/path/to/folder`。无法训练的官方模型会按名称拒绝，
并说明原因：视觉语言、语音和检索模型，奖励模型，Qwen3-Next，Qwen3.8-Flash-Next，以及量化版本（AWQ、GPTQ、FP8、
GGUF，请使用全精度的原模型）。
""",
    },
}
DOCS = CHECKOUT / "docs"


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
        ("Suite", "`evaluate.suite`"),
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


def model_reference(chinese: bool = False) -> str:
    """Return a table of every model in facts/models, in order of generation and size."""
    words = MODEL_PAGE["zh" if chinese else "en"]
    parts = [words["head"], words["columns"], "|---|---|--:|--:|---|--:|--:|---|"]
    shapes = [(load_model_shape(path.stem), read_facts(path)) for path in facts_path("models").glob("*.yaml")]
    for shape, known in sorted(shapes, key=lambda one: (_generation(one[0].name), one[0].num_parameters, one[0].name)):
        if known["source"] == "random":
            continue
        experts = shape.experts
        layers = f"{shape.num_hidden_layers} x {shape.hidden_size:,}"
        layers += words["experts"].format(count=experts.count, per_token=experts.per_token) if experts else ""
        active = "" if experts is None else f"{shape.active_parameters:,}"
        cells = (
            f"[{shape.name.partition('/')[2]}]({str(known['source']).removesuffix('/blob/main/config.json')})",
            str(known["model_type"]).removesuffix("_text"),
            f"{shape.num_parameters:,}",
            active,
            layers,
            f"{shape.vocab_size:,}",
            f"{shape.max_position_embeddings:,}",
            words.get(str(known.get("thinking")), "?"),
        )
        parts.append("| " + " | ".join(cells) + " |")
    return "\n".join([*parts, "", words["tail"]])


def _generation(name: str) -> tuple[bool, float]:
    """Return the sort key of a model: general ones first, by generation; QwQ is a Qwen2.5."""
    stem = name.partition("/")[2]
    found = re.search(r"Qwen(\d+(?:\.\d+)?)?", stem)
    return bool(re.search("QwQ|Code|Math", stem)), float(found[1] or 1) if found else 2.5


def index_for_programs() -> str:
    """Return llms.txt: what this is, and each guide with a link and its first paragraph (llmstxt.org)."""
    readme = (CHECKOUT / "README.md").read_text("utf-8")
    parts = ["# qwen-job\n", f"> {_without_links(opening(readme)[1])}\n", "## Guides\n"]
    for path in sorted(DOCS.glob("*.md")):
        if not path.name.endswith(".zh-CN.md"):
            title, summary = opening(path.read_text("utf-8"))
            parts.append(f"- [{title}](docs/{path.name}): {_without_links(summary)}")
    parts += ["", "## More\n", "- [README](README.md): the first job, on every target"]
    parts += ["- [AGENTS](AGENTS.md): how a program uses qwen-job, and how it changes it"]
    parts += ["- [Demo as a notebook](docs/demo.ipynb): plan, train on a CPU, look at the loss, and talk to the model"]
    parts += ["- [Schema of job.yaml](configs/job.schema.json): what an editor completes and checks"]
    parts += ["- [Schema of site.yaml](configs/site.schema.json): the same for a cluster's profile"]
    parts += ["- [Entry for SchemaStore](configs/schemastore.json): which files the schema is for"]
    parts += ["- [Contributing](CONTRIBUTING.md): set-up, rules, words, and how a release is made"]
    parts += ["- [Security](SECURITY.md): how to report a vulnerability, and what is in scope"]
    parts += ["- [Changes](CHANGELOG.md): what each version brings"]
    return "\n".join(parts) + "\n"


def _without_links(text: str) -> str:
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)


def main() -> int:
    """Write or compare the pages; 1 when one of them is out of date."""
    stale = 0
    pages = {
        "docs/cli.md": cli_reference,
        "docs/job.md": job_reference,
        "docs/examples.md": examples_page,
        "docs/examples.zh-CN.md": lambda: examples_page(chinese=True),
        "docs/models.md": model_reference,
        "docs/models.zh-CN.md": lambda: model_reference(chinese=True),
        "llms.txt": index_for_programs,  # last: it reads the others
    }
    for name, make in pages.items():
        path, text = CHECKOUT / name, make()
        if "--check" not in sys.argv:
            path.write_text(text, "utf-8")
        elif not path.exists() or path.read_text("utf-8") != text:
            print(f"{name} is out of date: python scripts/docs.py writes it", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
