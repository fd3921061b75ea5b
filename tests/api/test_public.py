"""``import qwen_job``: the promised names, their types, and what they cost to import."""

from __future__ import annotations

import ast
import copy
import inspect
import logging
import subprocess
import sys
import threading
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

import qwen_job
from qwen_job.errors import EnvironmentFault, JobError, UsageError
from tests.jobs import FIVE_LINES, write
from tests.support.pages import blocks

FUNCTIONS = ("load_job", "plan_job", "render_job", "submit_job", "follow_job", "read_metrics")
BASE = yaml.safe_load(FIVE_LINES)


def test_the_promised_names_are_these() -> None:
    types = {"Job", "Plan", "Bundle", "Submitted", "Look", "QwenJobError"}
    assert set(qwen_job.__all__) == {"__version__", *FUNCTIONS, *types}
    assert set(qwen_job.__all__) <= set(dir(qwen_job))


def test_a_type_checker_is_told_the_same(checkout: Path) -> None:
    stub = ast.parse((checkout / "qwen_job" / "__init__.pyi").read_text("utf-8"))
    told = {item.asname: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for item in node.names}
    assert told == qwen_job._PUBLIC


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_typed_and_explained(name: str) -> None:
    function = getattr(qwen_job, name)
    assert len(inspect.getdoc(function) or "") > 100
    hints = typing.get_type_hints(function)
    assert {"return", *inspect.signature(function).parameters} == set(hints)


def test_the_page_names_every_function_with_its_parameters(checkout: Path) -> None:
    for page in ("python.md", "python.zh-CN.md"):
        text = (checkout / "docs" / page).read_text("utf-8")
        for name in FUNCTIONS:
            row = text.partition(f"| `{name}(")[2].partition(")")[0]
            shown = {word.strip(" *=").partition("=")[0] for word in row.split(",")}
            assert shown <= set(inspect.signature(getattr(qwen_job, name)).parameters) and shown, (page, name)


def test_importing_the_package_imports_nothing_of_it() -> None:
    code = "import qwen_job, sys; print([name for name in sys.modules if name.startswith(('qwen_job.', 'pydantic'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_unknown_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'submit'.*submit_job"):
        qwen_job.submit  # noqa: B018


def test_fields_keep_their_types(tmp_path: Path) -> None:
    fields = {
        "train.learning_rate": 1e-5, "train.run_name": "1", "data.train": tmp_path / "a.json", "train.bf16": True,
        "env": {"A": "1.10"}, "evaluate": None,
    }  # fmt: skip
    job = qwen_job.load_job(write(tmp_path), sets=fields)
    assert (job.train.learning_rate, job.train.run_name, job.evaluate) == (1e-5, "1", None)
    assert job.data.train[0].path == str(tmp_path / "a.json") and job.env == {"A": "1.10"}


def test_fields_may_be_written_as_after_set(tmp_path: Path) -> None:
    assert qwen_job.load_job(write(tmp_path), sets=["train.seed=7"]).train.seed == 7


def test_files_override_the_base(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {seed: 2}\n", base="")
    job = qwen_job.load_job(path, base={**BASE, "train": {"seed": 1, "learning_rate": 3e-5}})
    assert (job.name, job.train.seed, job.train.learning_rate) == ("tiny", 2, 3e-5)


def test_a_job_needs_no_file() -> None:
    assert qwen_job.render_job(qwen_job.plan_job(qwen_job.load_job(base=BASE)), "slurm").text.startswith("#!/bin/bash")


def test_nothing_is_no_job() -> None:
    with pytest.raises(UsageError, match="path of a job file"):
        qwen_job.load_job()


def test_a_value_of_another_type_is_refused_with_its_field(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"train\.seed: is a set; write text, a number"):
        qwen_job.load_job(write(tmp_path), sets={"train.seed": {1, 2}})


def test_a_wrong_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"train\.sead: .*train\.seed"):
        qwen_job.load_job(write(tmp_path), sets={"train.sead": 1})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"nowhere\.yaml"):
        qwen_job.load_job(tmp_path / "nowhere.yaml")


def test_the_plan_says_why_the_data_is_not_counted() -> None:
    assert "/data/chats.json is not on this machine" in qwen_job.plan_job(qwen_job.load_job(base=BASE)).uncounted


def test_invalid_rows_are_a_warning_of_the_plan(tmp_path: Path) -> None:
    good = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    (tmp_path / "a.jsonl").write_text(f'{good}\n{{"messages": [{{"role": "user"}}]}}\n', "utf-8")
    plan = qwen_job.plan_job(qwen_job.load_job(base=BASE, sets={"data.train": tmp_path / "a.jsonl"}))
    assert any("1 of 2 rows is invalid" in warning for warning in plan.warnings)


@pytest.mark.parametrize("target", ["slrum", "k8s", ""])
def test_an_unknown_target_is_refused(target: str) -> None:
    plan = qwen_job.plan_job(qwen_job.load_job(base=BASE))
    with pytest.raises(UsageError, match="is not one of slurm, kubernetes"):
        qwen_job.render_job(plan, target)
    with pytest.raises(UsageError, match="submit takes"):
        qwen_job.submit_job(plan, target)


def test_a_sweep_is_one_job_on_slurm_only() -> None:
    plan = qwen_job.plan_job(qwen_job.load_job(base={**BASE, "sweep": {"train.seed": [1, 2]}}))
    assert "--array=0-1" in qwen_job.render_job(plan, "slurm").text
    with pytest.raises(JobError, match=r"sweep: on local each of its 2 runs is a separate job"):
        qwen_job.submit_job(plan, "local")
    assert len({qwen_job.render_job(run.plan, "local").text for run in plan.sweep}) == 2


def test_only_slurm_waits_for_another_job() -> None:
    plan = qwen_job.plan_job(qwen_job.load_job(base=BASE))
    with pytest.raises(UsageError, match="only a Slurm job can wait"):
        qwen_job.submit_job(plan, "local", after="7")


@pytest.mark.parametrize("interval", [0, -1, float("nan")])
def test_an_interval_is_above_zero(interval: float) -> None:
    with pytest.raises(UsageError, match="more than 0"):
        next(qwen_job.follow_job(interval=interval))


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Return a Python that cannot run qwen-job: the script ends with exit code 5 after it has asked it."""
    path = tmp_path / "python"
    path.write_text('#!/bin/sh\ntouch "$0.asked"\nexit 9\n')
    path.chmod(0o755)
    return path


def local(python: Path, **more: Any) -> qwen_job.Plan:
    base = {**BASE, "output": str(python.parent / "run"), "local": {"python": str(python)}, **more}
    return qwen_job.plan_job(qwen_job.load_job(base=base))


def test_a_local_job_ends_with_its_exit_code_and_its_python(python: Path) -> None:
    assert qwen_job.submit_job(local(python), "local").exit_code == 5
    assert Path(f"{python}.asked").exists()


def test_warnings_go_to_the_logger(python: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = local(python, notify=[{"kind": "slack", "url": "env:NOWHERE_SET"}])
    with caplog.at_level(logging.INFO, logger="qwen_job"):
        qwen_job.submit_job(plan, "local")
    assert [record.levelname for record in caplog.records if "NOWHERE_SET is not set" in record.message] == ["WARNING"]


def test_a_local_job_runs_outside_the_main_thread(python: Path) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(qwen_job.submit_job(local(python), "local").exit_code))
    thread.start()
    thread.join(60)
    assert codes == [5]


def test_the_base_is_left_as_it_was() -> None:
    base = copy.deepcopy(BASE)
    qwen_job.load_job(base=base, sets={"data.eval_split": 0.1, "cluster.nodes": 2})
    assert base == BASE


def test_the_page_s_job_without_a_file_is_rendered(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(blocks(checkout / "docs" / "python.md", "python")[2], "python.md", "exec"), {})
    assert capsys.readouterr().out.startswith("#!/bin/bash")
