"""Look up known vulnerabilities of what users install, with pip-audit, at the package index and at OSV.

  launcher   the wheel's own dependencies, at the versions of constraints.txt
  a set      the Python packages of that image, as its lock has them

Exit codes: 0 nothing is known, 1 something is, 3 a service did not answer for every package, which proves nothing.
AUDIT_OSV_URL names another server that speaks OSV's protocol, such as a mirror inside a company. Needs pip-audit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "qwen_job" / "facts" / "image"
SERVICES = ("pypi", "osv")
FOUND, UNANSWERED = 1, 3
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^+ \\\n]+)", re.MULTILINE)


def pins(what: str) -> list[str]:
    """Return ``name==version`` of each package.

    The version of a build on torch's own index (2.13.0+cpu) is that of the package index (2.13.0).
    """
    if what != "launcher":
        lock = (LOCKS / what / "requirements.lock").read_text("utf-8")
        return [f"{name}=={version}" for name, version in _PIN.findall(lock)]
    lines = (ROOT / "pyproject.toml").read_text("utf-8")
    direct = re.findall(r'"([\w.-]+)>=', re.findall(r"^dependencies = \[(.*?)^\]", lines, re.MULTILINE | re.DOTALL)[0])
    # What these bring, themselves included.
    wanted = {*direct, "markupsafe", "pydantic-core", "annotated-types", "typing-extensions", "typing-inspection"}
    found = _PIN.findall((ROOT / "constraints.txt").read_text())
    return [f"{name}=={version}" for name, version in found if re.sub(r"[._]", "-", name.lower()) in wanted]


def look_up(packages: Sequence[str], service: str, osv_url: str | None) -> int:
    """Ask one service about the packages, and print what it knows; return the exit code."""
    with tempfile.TemporaryDirectory() as name:
        listed, report = Path(name, "requirements.txt"), Path(name, "report.json")
        listed.write_text("\n".join(packages) + "\n")
        words = ["pip-audit", "--strict", "--disable-pip", "--no-deps", "--progress-spinner", "off"]
        words += ["--vulnerability-service", service, "--format", "json", "--output", str(report)]
        words += ["--requirement", str(listed), *(["--osv-url", osv_url] if osv_url and service == "osv" else [])]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            print("audit: pip-audit is not installed: pip install -c constraints.txt pip-audit", file=sys.stderr)
            return UNANSWERED
        # It ends with 1 for a finding and for a failure; only the first leaves a report.
        if not report.exists() or not report.read_text().strip():
            reason = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
            print(
                f"audit: {service} did not answer for every package, so this proves nothing: {reason}", file=sys.stderr
            )
            return UNANSWERED
        return _show(json.loads(report.read_text())["dependencies"], service, len(packages))


def _show(dependencies: list[dict[str, Any]], service: str, asked: int) -> int:
    known = [(one, flaw) for one in dependencies for flaw in one.get("vulns", [])]
    for one, flaw in known:
        fixed = ", ".join(flaw["fix_versions"]) or "no version yet"
        print(f"{one['name']} {one['version']}: {flaw['id']} (fixed in {fixed}): {flaw['description'][:200]}")
    print(f"{service}: {asked} packages, {len(known)} known vulnerabilities", file=sys.stderr)
    return FOUND if known else 0


def main(arguments: list[str]) -> int:
    """Look up each list at each service; return the gravest exit code: what proves nothing, then a finding."""
    sets = sorted(path.parent.name for path in LOCKS.glob("*/requirements.lock"))
    parser = argparse.ArgumentParser(
        prog="scripts/audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", metavar="launcher | SET", help=f"default: launcher and {', '.join(sets)}")
    parser.add_argument("--service", choices=SERVICES, action="append", help="only this one [default: both]")
    words = parser.parse_args(arguments)
    if unknown := set(words.what) - {"launcher", *sets}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; launcher or one of {', '.join(sets)}")
    codes = [0]
    for what in words.what or ["launcher", *sets]:
        print(f"== {what}", file=sys.stderr)
        for service in words.service or SERVICES:
            codes.append(look_up(pins(what), service, os.environ.get("AUDIT_OSV_URL")))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
