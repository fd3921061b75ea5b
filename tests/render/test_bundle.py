"""The same bytes every time and everywhere; what travels inside is what was planned."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from qwen_job.errors import JobError
from qwen_job.job import load_job
from qwen_job.plan import make_plan
from qwen_job.plan.train_config import train_config
from qwen_job.render import render
from qwen_job.render.configs import config_files
from qwen_job.resources import resource
from qwen_job.run.config import to_values
from tests.jobs import EXAMPLES, bundle, pinned_plan
from tests.support import optional
from tests.support.pythons import interpreters

ROOT = Path(__file__).parents[2]
DIGEST = """
import hashlib, sys
from qwen_job.job import load_job
from qwen_job.plan import make_plan
from qwen_job.render import render
for target in ("slurm", "hostfile", "local"):
    for job in sys.argv[1:]:
        try:
            files = render(make_plan(load_job([job], environ={})), target).files
        except Exception as error:
            files = {"error": f"{type(error).__name__}: {error}"}
        for name, text in files.items():
            print(target, name, hashlib.sha256(text.encode()).hexdigest())
"""
JOBS = [*sorted((ROOT / "tests" / "golden").glob("*.yaml")), *EXAMPLES]


def digests(python: Path | str = sys.executable, **env: str) -> str:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **env}
    words = [python, "-c", DIGEST, *JOBS]
    done = subprocess.run(words, capture_output=True, text=True, env=environ, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hash_seed_language_and_time_zone_change_nothing() -> None:
    first = digests(PYTHONHASHSEED="1", LANG="C", TZ="UTC")
    assert first == digests(PYTHONHASHSEED="2", LANG="zh_CN.UTF-8", LC_ALL="C", TZ="Asia/Shanghai", PYTHONUTF8="0")
    assert first.count("\n") >= 3 * len(JOBS)


def others() -> list[str]:
    """Return the other Python interpreters that are on this machine."""
    return [path for minor, path in interpreters().items() if minor != sys.version_info.minor]


@pytest.mark.slow
def test_other_python_versions_render_the_same_bytes() -> None:
    interpreters = others()
    if not interpreters:
        optional.skip("pythons", "no other Python from 3.10 on is on this machine")
    expected = digests()
    for interpreter in (interpreters[0], interpreters[-1]):
        assert digests(environment_of(interpreter)) == expected, interpreter


def environment_of(interpreter: str) -> Path:
    """Return the Python of a small environment with the launcher's dependencies, kept in .cache/."""
    stamp = hashlib.sha256((interpreter + (ROOT / "constraints.txt").read_text("utf-8")).encode()).hexdigest()[:12]
    folder = ROOT / ".cache" / f"launcher-{Path(interpreter).parts[-3]}-{stamp}"
    if not (folder / "ready").exists():
        subprocess.run([interpreter, "-m", "venv", "--clear", folder], check=True)
        words = ["install", "-q", "--disable-pip-version-check", "-c", ROOT / "constraints.txt"]
        subprocess.run([folder / "bin/pip", *words, "click", "jinja2", "pydantic", "pyyaml"], check=True)
        (folder / "ready").touch()
    return folder / "bin/python"


def test_the_configs_are_the_plan(tmp_path: Path) -> None:
    plan = pinned_plan(tmp_path)
    files = config_files(plan)
    assert yaml.safe_load(files["train.yaml"]) == to_values(train_config(plan))
    assert json.loads(files["deepspeed.json"]) == plan.deepspeed_config


def test_the_job_inside_makes_the_same_bundle_again(tmp_path: Path) -> None:
    slurm = {"setup": ["echo ${HOME}"], "sbatch": {"x11": True, "nice": None}}
    plan = pinned_plan(tmp_path, env={"A": "$${NOT_ME}"}, slurm=slurm)
    first = render(plan, "slurm")
    path = tmp_path / "again.yaml"
    path.write_text(config_files(plan)["job.yaml"], "utf-8")
    assert plan.env["A"] == "${NOT_ME}"
    assert render(make_plan(load_job([path], environ={})), "slurm") == first


def test_an_example_s_job_survives_its_own_copy(tmp_path: Path) -> None:
    for source in sorted(resource("configs", "jobs").glob("*.yaml")):
        plan = make_plan(load_job([source]))
        copy = tmp_path / source.name
        copy.write_text(config_files(plan)["job.yaml"], "utf-8")
        assert config_files(make_plan(load_job([copy]))) == config_files(plan), source.name


def test_rendering_writes_nothing_and_asks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = pinned_plan(tmp_path, hostfile={"hosts": "a"})
    before = sorted(tmp_path.rglob("*"))
    first = [render(plan, target) for target in ("slurm", "hostfile", "local")]
    monkeypatch.setenv("HOME", "/elsewhere")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.chdir("/")
    assert [render(plan, target) for target in ("slurm", "hostfile", "local")] == first
    assert sorted(tmp_path.rglob("*")) == before


def test_this_machine_is_one_node(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"cluster\.nodes: 2 nodes, but this machine"):
        bundle(tmp_path, "local", cluster={"nodes": 2})
