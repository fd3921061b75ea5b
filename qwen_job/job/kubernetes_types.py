"""The small types of the ``kubernetes:`` section: names, quantities and tolerations that an API server accepts."""

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from qwen_job.job.types import seconds

_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_EXTENDED = rf"{SUBDOMAIN}/{_NAME}"
_NATIVE = "cpu|memory|ephemeral-storage|hugepages-[0-9]+(Ki|Mi|Gi)"
_QUANTITY = r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?"
_BYTE = "(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
# The largest 32-bit number: the server rejects larger seconds, counts, users and groups.
_INT32 = 2**31 - 1

_UNITS = "M|G|T|P|E|Mi|Gi|Ti|Pi|Ei"
# At least 1 MB: a number without a unit, or in milli-bytes, is a typo.
_MEMORY = (
    rf"(0*[1-9][0-9]*(\.[0-9]+)?|0*\.[0-9]*[1-9][0-9]*)({_UNITS})"
    r"|0*[1-9][0-9]{3,}(\.[0-9]+)?(k|Ki)|0*[1-9][0-9]{6,}(\.[0-9]+)?"
)
_CORES = r"(0*[1-9][0-9]*(\.[0-9]+)?|0*\.[0-9]*[1-9][0-9]*)m?"


def _written(value: Any) -> Any:
    """Accept a number where Kubernetes expects text: ``cpu: 16``."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _meant(pattern: str, text: str) -> str:
    """Return a quantity in Kubernetes' spelling: ``400GB`` is 400G, ``400 gib`` 400Gi."""
    found = re.fullmatch(r"([\d.]+)\s*([kmgtpe])(i?)b?", text.strip(), re.IGNORECASE)
    meant = f"{found[1]}{found[2].upper()}{found[3].lower()}" if found else ""
    return f"; did you mean '{meant}'?" if re.fullmatch(pattern, meant) else ""


def _amount(pattern: str, wrong: str) -> Any:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(wrong.format(text) + _meant(pattern, text))
        return text

    text = {"type": "string", "pattern": f"^({pattern})$", "maxLength": 30}
    return Annotated[
        str,
        BeforeValidator(_written),
        Field(max_length=30),
        AfterValidator(check),
        WithJsonSchema({"anyOf": [text, {"type": "number", "exclusiveMinimum": 0}]}),
    ]


DnsLabel = Annotated[str, Field(pattern=rf"^{_LABEL}$")]
DnsSubdomain = Annotated[str, Field(pattern=rf"^{SUBDOMAIN}$", max_length=253)]
Quantity = Annotated[str, Field(pattern=rf"^{_QUANTITY}$", max_length=30)]
Cores = _amount(_CORES, "{0!r} is not a number of cores; write e.g. 16, 1.5 or 500m")
Memory = _amount(_MEMORY, "{0!r} is not an amount of memory of 1 MB or more; write it with its unit, e.g. 64Gi")
Storage = Annotated[str, Field(pattern=r"^[1-9][0-9]*(\.[0-9]+)?(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$", max_length=30)]
QualifiedName = Annotated[str, Field(pattern=rf"^({SUBDOMAIN}/)?{_NAME}$", max_length=317)]
ExtendedResource = Annotated[str, Field(pattern=rf"^{_EXTENDED}$", max_length=317)]
LabelValue = Annotated[str, Field(pattern=rf"^({_NAME})?$")]
MountPath = Annotated[str, Field(pattern=r"^/[^:\x00-\x1f\x7f]*$", max_length=4096)]
SecretKey = Annotated[str, Field(pattern=rf"^{SUBDOMAIN}/[-._a-zA-Z0-9]{{1,253}}$", max_length=507)]
Whole = Annotated[int, Field(ge=0, le=_INT32)]
Natural = Annotated[int, Field(ge=1, le=_INT32)]
Lifetime = Annotated[int, BeforeValidator(seconds), Field(ge=0, le=_INT32)]
Deadline = Annotated[int, BeforeValidator(seconds), Field(ge=1, le=_INT32)]


def _network(text: str) -> str:

    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a network ({error}); write e.g. 10.0.0.0/8 or fd00::/8") from None
    return text


Cidr = Annotated[
    str,
    Field(
        pattern=rf"^({_BYTE}(\.{_BYTE}){{3}}/(3[0-2]|[12]?[0-9])|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))$"
    ),
    AfterValidator(_network),
]

# Set and used as selectors by the operators, Helm and qwen-job.
OWN_LABELS = (
    r"app\.kubernetes\.io/(name|instance|version|component)$|kueue\.x-k8s\.io/queue-name$|"
    r"training\.kubeflow\.org/|jobset\.sigs\.k8s\.io/|batch\.kubernetes\.io/"
)
OWN_ANNOTATIONS = r"qwen-job/|helm\.sh/|meta\.helm\.sh/"


def not_ours(pattern: str, instead: str) -> Any:
    def check(values: Mapping[str, str]) -> Mapping[str, str]:
        for name in values:
            if re.match(pattern, name):
                raise ValueError(f"{name} is written by qwen-job, Helm or the operator; {instead}")
            if len(name.rpartition("/")[0]) > 253:
                raise ValueError(f"{name[:40]}...: the part before / has over 253 characters; shorten it")
        return values

    return AfterValidator(check)


def _amounts(values: dict[str, str]) -> dict[str, str]:
    for name, amount in values.items():
        if "/" in name and not amount.isdecimal():
            raise ValueError(f"{name}: {amount!r} is not a whole number; devices cannot be divided")
        if "/" not in name and not re.fullmatch(_NATIVE, name):
            raise ValueError(f"{name} is not a Kubernetes resource; write a name such as rdma/hca")
    return values


Amounts = Annotated[
    dict[QualifiedName, Annotated[Quantity, BeforeValidator(_written)]],
    AfterValidator(_amounts),
    WithJsonSchema(
        {
            "type": "object",
            "patternProperties": {
                rf"^({_NATIVE})$": {"type": ["string", "number"], "pattern": rf"^{_QUANTITY}$"},
                rf"^{_EXTENDED}$": {"type": ["string", "integer"], "pattern": "^[0-9]+$"},
            },
            "additionalProperties": False,
        }
    ),
]

_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def _toleration(value: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(value) - {"key", "operator", "value", "effect", "tolerationSeconds"})
    operator = value.get("operator", "Equal")
    if unknown:
        raise ValueError(f"{unknown[0]}: a toleration has key, operator, value, effect and tolerationSeconds")
    for name in ("key", "operator", "value", "effect"):
        if not isinstance(value.get(name, ""), str):
            raise ValueError(f"{name}: must be text: write it in quotes")
    if operator not in ("Exists", "Equal"):
        raise ValueError(f"operator: {operator!r} is not an operator: write Exists or Equal")
    if value.get("effect", _EFFECTS[0]) not in _EFFECTS:
        raise ValueError(f"effect: {value['effect']!r} is none of {', '.join(_EFFECTS)}")
    if value.get("key") and not re.fullmatch(rf"({SUBDOMAIN}/)?{_NAME}", value["key"]):
        raise ValueError(f"key: {value['key']!r} is not a valid taint key")
    if not re.fullmatch(rf"({_NAME})?", value.get("value", "")):
        raise ValueError(f"value: {value['value']!r} is not a valid taint value")
    if operator == "Exists" and value.get("value"):
        raise ValueError("value: not allowed with Exists; write operator: Equal, or remove the value")
    if operator == "Equal" and not value.get("key"):
        raise ValueError("key: missing; to tolerate every taint, write operator: Exists")
    if "tolerationSeconds" in value and (
        value.get("effect") != "NoExecute" or type(value["tolerationSeconds"]) is not int
    ):
        raise ValueError("tolerationSeconds: must be a whole number, and needs effect: NoExecute")
    return value


Toleration = Annotated[
    dict[str, Any],
    AfterValidator(_toleration),
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "key": {"type": "string", "pattern": rf"^({SUBDOMAIN}/)?{_NAME}$"},
                "operator": {"enum": ["Exists", "Equal"]},
                "value": {"type": "string", "pattern": rf"^({_NAME})?$"},
                "effect": {"enum": list(_EFFECTS)},
                "tolerationSeconds": {"type": "integer"},
            },
            "allOf": [
                {
                    "if": {"required": ["tolerationSeconds"]},
                    "then": {"required": ["effect"], "properties": {"effect": {"const": "NoExecute"}}},
                },
                {
                    "if": {"required": ["operator"], "properties": {"operator": {"const": "Exists"}}},
                    "then": {"properties": {"value": {"const": ""}}},
                    "else": {"required": ["key"]},
                },
            ],
        }
    ),
]


def _forward(path: str) -> str:
    if ".." in path.split("/"):
        raise ValueError("must not contain '..'; write the path without it")
    return path


forward = AfterValidator(_forward)


def _no_null(value: Any) -> Any:
    """Refuse null inside an overlay: Helm drops such a key and API servers ignore it, so it has no effect."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if item is None:
            raise ValueError(f"{key}: null has no effect in Kubernetes; write a value, or remove the line")
        _no_null(item)
    return value


Overlay = Annotated[dict[str, Any], AfterValidator(_no_null)]
