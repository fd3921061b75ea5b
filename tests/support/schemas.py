"""Would a Kubernetes server take these objects?  Asked offline, and more strictly than a server does.

Every object goes through all judges that know its kind: the schemas of the Kubernetes release, the official SDK models
(read, written again, and compared: what they do not know is lost on the way), the published CRDs where they are to be
had, and the rules of tests/support/pods.py, for what a server accepts although it is wrong.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]
import yaml

from tests.support import pods

# From the oldest release that the chart takes (Chart.yaml's kubeVersion) to the newest that there is a schema of.
KUBERNETES = ("1.27", "1.29", "1.31", "1.33", "1.35", "1.37")
# Each schema is read for every object otherwise: two thirds of the time of a check.
kubernetes_validate.utils.schema_contents = lru_cache(kubernetes_validate.utils.schema_contents)
Object = dict[str, Any]
CHECKOUT = Path(__file__).resolve().parents[2]


def crd_folder() -> Path | None:
    """Return the folder of published CRDs: $QWEN_JOB_CRDS, or shared/crds beside the checkout; None without one."""
    folder = Path(os.environ.get("QWEN_JOB_CRDS") or CHECKOUT.parent / "shared" / "crds")
    return folder if folder.is_dir() else None


def load(text: str) -> list[Object]:
    """Return the objects of a manifest; empty documents are left out."""
    return [document for document in yaml.safe_load_all(text) if document]


def validate(objects: list[Object]) -> list[str]:
    """Return what is wrong with the objects, a line each, as ``Kind/name: place: problem``; nothing wrong: []."""
    problems: list[str] = []
    for thing in objects:
        if not isinstance(thing, dict) or not isinstance(thing.get("kind"), str):
            problems.append(f"not a Kubernetes object: {thing!r:.80}")
            continue
        metadata = thing.get("metadata") or {}
        label = f"{thing['kind']}/{metadata.get('name', '?')}"
        problems.extend(f"{label}: {problem}" for problem in _problems(thing))
    seen = [(thing.get("kind"), (thing.get("metadata") or {}).get("name")) for thing in objects]
    problems.extend(f"{kind}/{name}: twice" for kind, name in {key for key in seen if seen.count(key) > 1})
    return list(dict.fromkeys(problems))


def _problems(thing: Object) -> Iterator[str]:
    kind = thing["kind"]
    yield from pods.check_metadata(thing)
    if kind == "PyTorchJob":
        yield from _by_crd(thing)
        yield from _by_training_sdk(thing)
        yield from pods.check_pytorchjob(thing)
    elif kind in ("TrainJob", "TrainingRuntime", "ClusterTrainingRuntime", "JobSet"):
        yield from _by_crd(thing)
        yield from _by_trainer_sdk(thing)
        yield from pods.check_trainjob(thing)
    else:
        yield from _by_release(thing)
        yield from pods.check_core(thing)
    for place, template in pods.templates(thing):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": template.get("metadata", {}),
            "spec": template.get("spec"),
        }
        yield from (f"{place}.{problem}" for problem in [*_by_release(pod), *pods.check_pod_spec(pod["spec"])])


def _by_release(thing: Object) -> Iterator[str]:
    """Judge by the schemas of several Kubernetes releases: types, required and unknown fields."""
    for release in KUBERNETES:
        try:
            kubernetes_validate.validate(thing, release, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{_place(error.path)}: {error.message:.300}"
        except kubernetes_validate.SchemaNotFoundError as error:
            yield f"kind: {error.message}"


def _place(path: Any) -> str:
    return ".".join(map(str, path)) or "object"


def _by_crd(thing: Object) -> Iterator[str]:
    """Judge by the published CRD of the kind, without tolerance for unknown fields."""
    validator = _crds().get((thing.get("apiVersion", ""), thing["kind"]))
    if validator:
        yield from (f"{_place(error.path)}: {error.message:.300}" for error in validator.iter_errors(thing))


@lru_cache(maxsize=1)
def _crds() -> dict[tuple[str, str], jsonschema.Draft202012Validator]:
    found = {}
    folder = crd_folder()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for file in sorted(folder.glob("*.yaml")) if folder else []:
        for crd in yaml.load_all(file.read_text(), loader):
            if not crd or crd.get("kind") != "CustomResourceDefinition":
                continue
            spec = crd["spec"]
            for version in spec["versions"]:
                key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                schema = strict(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                found[key] = jsonschema.Draft202012Validator(schema)
    return found


def strict(schema: Any) -> Any:
    """Turn a structural OpenAPI v3 schema into JSON Schema that refuses unknown fields wherever a server drops them."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    verbatim = ("enum", "default", "required", "properties")
    done = {key: value if key in verbatim else strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        done["properties"] = {name: strict(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            done.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        done.pop("type", None)
        done["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if schema.get("nullable") and isinstance(done.get("type"), str):
        done["type"] = [done["type"], "null"]
    return done


def _by_training_sdk(thing: Object) -> Iterator[str]:
    """Judge by the models of the kubeflow-training SDK (training-operator, kubeflow.org/v1)."""
    from kubeflow.training.api_client import ApiClient  # type: ignore[import-untyped]

    class Answer:
        data = json.dumps(thing)

    client = ApiClient(pool_threads=1)
    try:
        again = client.sanitize_for_serialization(client.deserialize(Answer, f"KubeflowOrgV1{thing['kind']}"))
    except (ValueError, TypeError, AttributeError) as error:
        yield f"the kubeflow-training SDK refuses it: {error!s:.300}"
        return
    yield from compare(thing, again)


def _by_trainer_sdk(thing: Object) -> Iterator[str]:
    """Judge by the models of kubeflow-trainer-api (Trainer v2, trainer.kubeflow.org/v1alpha1)."""
    from kubeflow_trainer_api import models  # type: ignore[import-untyped]

    group = "JobsetV1alpha2" if thing["kind"] == "JobSet" else "TrainerV1alpha1"
    try:
        again = getattr(models, group + thing["kind"]).from_dict(thing).to_dict()
    except ValueError as error:
        yield f"kubeflow-trainer-api refuses it: {' '.join(str(error).split()):.300}"
        return
    yield from compare(thing, again)


def compare(ours: Any, again: Any, place: str = "") -> Iterator[str]:
    """Yield the places of ``ours`` that came back from a model in another form, or not at all."""
    if isinstance(ours, dict) and isinstance(again, dict):
        for key, value in ours.items():
            where = f"{place}.{key}" if place else str(key)
            if key not in again:
                yield f"{where}: unknown field"
            else:
                yield from compare(value, again[key], where)
    elif isinstance(ours, list) and isinstance(again, list) and len(ours) == len(again):
        for number, (value, other) in enumerate(zip(ours, again, strict=True)):
            yield from compare(value, other, f"{place}.{number}")
    elif isinstance(ours, int) and re.search(r"\.(limits|requests)\.", place) and float(again) == ours:
        pass  # a quantity may be a number or a text
    elif ours != again or type(ours) is not type(again):
        yield f"{place}: {ours!r:.80} is read as {again!r:.80}"
