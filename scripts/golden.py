"""Writes what is kept in the repository though it is made: schemas, slurm/*.sbatch, tests/golden/.

scripts/golden.py            rewrite them (make golden)
scripts/golden.py --check    only say which differ, and end with 1
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from qwen_job.job import load_job  # noqa: E402
from qwen_job.job.schema import catalog_entry, job_schema, site_schema  # noqa: E402
from qwen_job.plan import make_plan  # noqa: E402
from qwen_job.render import render  # noqa: E402

GOLDEN = ROOT / "tests" / "golden"
TARGETS = ("slurm", "hostfile", "local")
# The examples whose scripts are kept, for who has no launcher at hand.
SCRIPTS = ("qwen-1_8b-chat-a100", "qwen-1_8b-chat-v100", "qwen-7b-chat-a100-2x8")


def expected() -> dict[Path, str]:
    """Return path -> text of every kept file."""
    files = {
        ROOT / "configs" / "job.schema.json": _json(job_schema()),
        ROOT / "configs" / "site.schema.json": _json(site_schema()),
        ROOT / "configs" / "schemastore.json": _json(catalog_entry()),
    }
    for name in SCRIPTS:
        job = load_job([ROOT / "configs" / "jobs" / f"{name}.yaml"])
        files[ROOT / "slurm" / f"{name}.sbatch"] = render(make_plan(job), "slurm").text
    for path in sorted(GOLDEN.glob("*.yaml")):
        for target in _targets(path):
            for name, text in render(make_plan(load_job([path], environ={})), target).files.items():
                files[GOLDEN / path.stem / target / name] = text
    return files


def _targets(path: Path) -> list[str]:
    """Return the targets of a golden job: those that its first line names."""
    words = path.read_text("utf-8").splitlines()[0].removeprefix("# targets:").split()
    return [word for word in words if word in TARGETS]


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Write or check; return the exit code."""
    files = expected()
    differing = [path for path, text in files.items() if not path.exists() or path.read_text("utf-8") != text]
    kept = {*(ROOT / "slurm").glob("*.sbatch"), *(p for p in GOLDEN.glob("*/*/*") if p.suffix != ".pyc")}
    stale = sorted(kept - set(files))
    for path in [*differing, *stale]:
        print(path.relative_to(ROOT))
        if "--check" in arguments:
            continue
        if path in stale:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path], "utf-8")
    return 1 if "--check" in arguments and (differing or stale) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
