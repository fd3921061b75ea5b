"""The SBOM of the wheel: CycloneDX 1.6, with the versions that the tests ran with (constraints.txt).

An image has its own, which lists everything in it (/opt/image/sbom.cdx.json), and one that is attested to it.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from datetime import datetime, timezone
from email.parser import Parser
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def bill_of_materials(wheel: Path, constraints: Path, epoch: str) -> str:
    """Return the SBOM of a wheel and of all that it depends on without extras, as JSON."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", constraints.read_text("utf-8"), re.MULTILINE))
    versions = {str(canonicalize_name(package)): version for package, version in pins.items()}
    graph: dict[str, list[str]] = {"qwen-job": _needs(metadata.get_all("Requires-Dist", []))}
    waiting = list(graph["qwen-job"])
    while waiting:
        package = waiting.pop()
        if package not in graph:
            graph[package] = _needs(requires(package) or [])
            waiting += graph[package]
    versions["qwen-job"] = str(metadata["Version"])
    reference = {package: f"pkg:pypi/{package}@{versions[package]}" for package in graph}
    own = _component("qwen-job", versions["qwen-job"], "application")
    own |= {
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}],
        "licenses": [{"license": {"id": metadata["License-Expression"]}}],
    }
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(int(epoch), timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": own,
        },
        "components": [_component(package, versions[package]) for package in sorted(graph) if package != "qwen-job"],
        "dependencies": [
            {"ref": reference[package], "dependsOn": sorted(reference[one] for one in needs)}
            for package, needs in sorted(graph.items())
        ],
    }
    return json.dumps(document, indent=2) + "\n"


def _needs(lines: list[str]) -> list[str]:
    """Return the packages that are required without an extra, on Linux and this Python."""
    found = [Requirement(line) for line in lines]
    return sorted(
        str(canonicalize_name(one.name)) for one in found if not one.marker or one.marker.evaluate({"extra": ""})
    )


def _component(name: str, version: str, kind: str = "library") -> dict[str, Any]:
    reference = f"pkg:pypi/{name}@{version}"
    return {"type": kind, "bom-ref": reference, "name": name, "version": version, "purl": reference}
