"""Write what the image is made of: image.json (read by `qwen-job node check`), sbom.cdx.json and licenses.txt.

    describe.py BUILD_FOLDER TARGET_FOLDER

Runs in the build stage, where importing torch to ask it is allowed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

CYCLONEDX = "/opt/tools/bin/cyclonedx-py"


def torch_architectures() -> list[str]:
    """What torch's own kernels were compiled for, e.g. ``[sm_80, sm_90]``; needs no GPU. Empty for a CPU build."""
    flags: str | None = torch._C._cuda_getArchFlags() if torch.version.cuda else None
    return flags.split() if flags else []


def describe(settings: dict[str, Any], name: str, *, compiler: bool) -> dict[str, Any]:
    """Return image.json's content; an architecture that torch does not carry ends the build."""
    carried = torch_architectures()
    wanted = [arch for arch in settings["architectures"] if arch.startswith("sm_")]
    missing = [arch for arch in wanted if arch not in carried]
    if missing:
        raise SystemExit(f"describe: torch {torch.__version__} carries {carried}, not {', '.join(missing)}")
    if (torch.version.cuda or None) != settings["cuda"]:
        raise SystemExit(f"describe: set.yaml says CUDA {settings['cuda']}, torch brings {torch.version.cuda}")
    kept = ("cuda", "minimum_driver", "architectures", "ops")
    return {
        "version": 1,
        "set": name,
        "torch": torch.__version__,
        "deepspeed": version("deepspeed"),
        "torch_architectures": carried,
        "compiler": compiler,
        **{key: settings[key] for key in kept},
    }


def debian_components(names: set[str]) -> list[dict[str, Any]]:
    """The Debian packages of the final image as CycloneDX components: the build stage holds more."""
    form = "${Package} ${Version} ${Architecture}\n"
    listing = subprocess.run(["dpkg-query", "-W", "-f", form], check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in listing.splitlines()]
    return [
        {
            "type": "library",
            "bom-ref": f"deb/{name}",
            "name": name,
            "version": number,
            "purl": f"pkg:deb/debian/{name}@{number}?arch={arch}",
        }
        for name, number, arch in rows
        if name in names
    ]


def bill_of_materials(debian: set[str]) -> dict[str, Any]:
    """Python packages as cyclonedx-bom finds them in this environment, and the Debian packages beside them."""
    command = [CYCLONEDX, "environment", "--output-reproducible", "--of", "JSON", sys.executable]
    bom: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    bom["components"] += debian_components(debian)
    return bom


def licence(component: dict[str, Any]) -> str:
    if component["bom-ref"].startswith("deb/"):
        return f"/usr/share/doc/{component['name']}/copyright"
    names = [
        entry.get("expression") or entry["license"].get("id") or entry["license"].get("name", "")
        for entry in component.get("licenses", [])
    ]
    return " AND ".join(dict.fromkeys(filter(None, names))) or "not stated"


def main(build: Path, target: Path) -> None:
    settings = yaml.safe_load((build / "set.yaml").read_text())
    debian = set((target / "debian.txt").read_text().split())
    image = describe(settings, settings["name"], compiler="gcc" in debian)
    (target / "image.json").write_text(json.dumps(image, indent=1) + "\n")
    bom = bill_of_materials(debian)
    (target / "sbom.cdx.json").write_text(json.dumps(bom, separators=(",", ":")) + "\n")
    rows = sorted(f"{c['name']} {c.get('version', '')}\t{licence(c)}" for c in bom["components"])
    (target / "licenses.txt").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
