"""Write what the chart has in common with the package: Chart.yaml, values.yaml, its schema, and the README's table.

scripts/chart.py           writes them
scripts/chart.py --check   exits 1 when they are not what would be written
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from qwen_job.job import load_job  # noqa: E402
from qwen_job.job.types import ENV_NAME  # noqa: E402
from qwen_job.plan import make_plan  # noqa: E402
from qwen_job.render.kubernetes.chart_values import ChartValues  # noqa: E402
from qwen_job.render.kubernetes.helm import values_text  # noqa: E402
from qwen_job.run.config import TrainConfig  # noqa: E402
from scripts.chart_metadata import chart_yaml, readme  # noqa: E402

CHART = ROOT / "charts" / "qwen-job"
NUMBER = r"^[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$"
# Titles of the mappings whose keys are variables' names.
ENVIRONMENTS = ("Env", "Secret Env")
REFERENCE = ROOT / "configs" / "jobs" / "qwen-1_8b-chat-a100.yaml"


def generated() -> dict[str, str]:
    """Return file name -> text."""
    values, rules = values_text(make_plan(load_job([REFERENCE])), shipped=True), schema()
    text = (CHART / "README.md").read_text("utf-8")
    return {
        "Chart.yaml": chart_yaml(),
        "values.yaml": values,
        "values.schema.json": json.dumps(rules, indent=2) + "\n",
        "README.md": readme(text, rules, yaml.safe_load(values)),
    }


def schema() -> dict[str, Any]:
    """Return draft-07 JSON Schema, which Helm 3 and 4 both read."""
    result = ChartValues.model_json_schema(mode="validation")
    train_text = json.dumps(_partial(TrainConfig.model_json_schema(mode="validation")))
    train = json.loads(train_text.replace("#/$defs/", "#/$defs/Train"))
    definitions = result["$defs"]
    definitions |= {f"Train{name}": part for name, part in train.pop("$defs").items()}
    result["properties"]["train"] = {**train, "description": "Overrides for train.yaml"}
    # Helm hands every chart the values that are global to all.
    result["properties"]["global"] = {"type": "object"}
    result.pop("required")
    files = definitions["Planned"]["properties"]["files"]
    names = ("job.yaml", "train.yaml", "deepspeed.json", "sweep.json")
    files |= {"properties": {name: {"type": "string"} for name in names}, "additionalProperties": False}
    result = _closed(result)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **result, "title": "Values of the chart qwen-job"}


def _closed(value: Any) -> Any:
    """Refuse keys of other forms where a mapping's keys have a form: environment variables, labels."""
    if isinstance(value, list):
        return [_closed(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: _closed(item) for key, item in value.items()}
    if value.get("title") in ENVIRONMENTS and isinstance(value.get("additionalProperties"), dict):
        value["patternProperties"] = {f"^{ENV_NAME}$": value.pop("additionalProperties")}
    if "patternProperties" in value:
        value.setdefault("additionalProperties", False)
    return value


def _partial(value: Any) -> Any:
    """Drop what a partial document need not have: required fields and defaults."""
    if isinstance(value, dict):
        if value.get("type") == "number":
            # Helm takes --set x=2e-5 for text; the trainer reads the number in it.
            value = {**value, "type": ["number", "string"], "pattern": NUMBER}
        return {key: _partial(item) for key, item in value.items() if key not in ("required", "default")}
    return [_partial(item) for item in value] if isinstance(value, list) else value


def main(arguments: list[str]) -> int:
    """Write or check the files."""
    stale = [name for name, text in generated().items() if not _same(CHART / name, text)]
    if "--check" in arguments:
        for name in stale:
            print(f"charts/qwen-job/{name} is not what scripts/chart.py writes; run it", file=sys.stderr)
        return 1 if stale else 0
    for name, text in generated().items():
        (CHART / name).write_text(text, "utf-8")
    return 0


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text("utf-8") == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
