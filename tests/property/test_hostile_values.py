"""Hostile names, paths, values and options: what is read back is what went in, or the field is named; nothing runs.

Each example carries many values, so that one bash run tries them all.
"""

# ruff: noqa: E501 - lists of hostile text
from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qwen_job.errors import JobError
from qwen_job.job import load_job
from qwen_job.plan import Plan, make_plan
from qwen_job.plan.train_config import train_config
from qwen_job.render import render
from qwen_job.render.quote import to_json, to_yaml
from qwen_job.run.config import to_values
from tests.jobs import PINNED
from tests.render.slurm.reading import sbatch_lines, srun_words

CANARY = "/tmp/qwen-job-canary-must-never-exist"
TRICKS = [
    f"$(touch {CANARY})", f"`touch {CANARY}`", f"'; touch {CANARY}; '", f'"; touch {CANARY}; "', f"\n touch {CANARY}\n",
    f"; touch {CANARY} #", f"| touch {CANARY}", f"\\\n touch {CANARY}", "---", "...", "{{ 7*7 }}", "{% raw %}", "${HOME}",
    "$HOME", "~", "a b", " lead", "trail ", "\ttab", "#no comment", "a#b", "你好，世界", "😀", "\\", "\\'", "'", '"', "``",
    "*", "?", "[a-z]", "!x", "&", ">x", "<x", "%x-%j", "QWEN_JOB_END", "QWEN_JOB_NODE_END\n", "yes", "null", "1e5", "-",
    "--", "-n", "=", "a=b", "x" * 10_000, "\r\n", "\x00", "\x7f", "\u2028", "\ufeff", "\x85", "#SBATCH --wrap=x", "",
]  # fmt: skip
TEXT = st.one_of(
    st.sampled_from(TRICKS),
    st.text(max_size=40),
    st.lists(st.sampled_from(TRICKS), min_size=2, max_size=3).map("".join),
)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True)
ENV = st.dictionaries(NAMES, TEXT, max_size=12)
BOUNDED = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
STAND_IN = """#!/bin/bash
if [ "$1" = -c ]; then echo 29999; exit 0; fi
exec {python} -S -c 'import json, os, sys
json.dump([sys.argv[2:], dict(os.environ)], open(sys.argv[1], "w"))' {out} "$@"
"""


@pytest.fixture(autouse=True)
def nothing_runs() -> Iterator[None]:
    Path(CANARY).unlink(missing_ok=True)
    yield
    assert not Path(CANARY).exists(), "a value was executed"


def planned(folder: Path, **sections: Any) -> Plan | JobError:
    """Load a job with hostile values in it."""
    job = {**PINNED, **sections}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job), "utf-8")
    try:
        return make_plan(load_job([path], environ={}))
    except JobError as error:
        return error


def doubled(value: str) -> str:
    return value.replace("${", "$${")


def refused_by_field(error: JobError, *fields: str) -> bool:
    return all(problem.field.startswith(fields) for problem in error.problems)


@given(env=ENV)
@example(env={f"V{i}": text for i, text in enumerate(TRICKS) if "\0" not in text})
@example(env={"PATH_": "x", "run": "/x", "pid": "1", "code": "9", "rdzv_id": "x", "start": "y", "UID": "7"})
@BOUNDED
def test_bash_hands_every_variable_to_the_training_unchanged(tmp_path: Path, env: dict[str, str]) -> None:
    stand_in, out = tmp_path / "python", tmp_path / "called.json"
    stand_in.write_text(STAND_IN.format(python=shlex.quote(sys.executable), out=shlex.quote(str(out))))
    stand_in.chmod(0o755)
    made = planned(
        tmp_path, env={name: doubled(value) for name, value in env.items()}, output=str(tmp_path / "run"),
        local={"python": str(stand_in)},
    )  # fmt: skip
    if isinstance(made, JobError):
        assert refused_by_field(made, *(f"env.{name}" for name in env))
        return
    script = render(made, "local").text
    done = subprocess.run(["bash", "-s"], input=script.encode(), capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    arguments, seen = json.loads(out.read_text())
    assert {name: seen.get(name) for name in env} == env
    assert arguments[-1] == str(tmp_path / "run" / "train.yaml")


@given(name=TEXT, python=TEXT, system_prompt=TEXT, data=TEXT, output=TEXT)
@BOUNDED
def test_names_and_paths_survive_or_are_named(
    tmp_path: Path, name: str, python: str, system_prompt: str, data: str, output: str
) -> None:
    made = planned(
        tmp_path, name="tiny", local={"python": doubled(python)}, output=f"{tmp_path}/runs/r{doubled(output)}",
        data={"train": f"/data/{doubled(data)}", "system_prompt": doubled(system_prompt)}, model={"name": f"m{doubled(name)}"},
    )  # fmt: skip
    if isinstance(made, JobError):
        assert refused_by_field(made, "local.python", "output", "data.", "model.name")
        return
    script = render(made, "local").text
    head = script[: script.index("\n# A free port")]
    (tmp_path / "head.sh").write_text(head, "utf-8", newline="")
    print_run = '\nprintf "%s" "$run"'
    done = subprocess.run(["bash", "-c", head + print_run], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    run = Path(done.stdout.decode())
    assert str(run) == made.job.output
    written = yaml.safe_load((run / "train.yaml").read_bytes())
    assert written == to_values(train_config(made)) and written["data"]["system_prompt"] == system_prompt
    assert json.loads((run / "deepspeed.json").read_bytes()) == made.deepspeed_config
    again = load_job([run / "job.yaml"], environ={})
    assert train_config(make_plan(again)) == train_config(made)


# Options of a site's plugin; Slurm's own have rules of their own.
OPTION = st.from_regex(r"x-[A-Za-z0-9-]{0,12}[A-Za-z0-9]", fullmatch=True)


@given(options=st.dictionaries(OPTION, TEXT, max_size=8), partition=TEXT, log=TEXT)
@example(
    options={f"o{i}": text for i, text in enumerate(TRICKS) if text.isprintable() and len(text) < 900},
    partition="p",
    log="/l",
)
@BOUNDED
def test_sbatch_reads_every_option_unchanged(tmp_path: Path, options: dict[str, str], partition: str, log: str) -> None:
    slurm = {
        "sbatch": {name: doubled(value) for name, value in options.items()}, "partition": doubled(partition),
        "log_dir": f"/l{doubled(log)}",
    }  # fmt: skip
    made = planned(tmp_path, slurm=slurm)
    try:
        script = render(made, "slurm").text if not isinstance(made, JobError) else None
    except JobError as error:
        made, script = error, None
    if script is None:
        assert isinstance(made, JobError) and refused_by_field(made, "slurm.")
        return
    read = sbatch_lines(script)
    assert {f"--{name}={value}" for name, value in options.items()} <= set(read)
    assert f"--partition={partition}" in read
    assert all(word.startswith("--") for word in read)


@given(options=st.dictionaries(OPTION, TEXT, max_size=8), python=TEXT)
@BOUNDED
def test_srun_gets_every_option_as_one_word(tmp_path: Path, options: dict[str, str], python: str) -> None:
    slurm = {"srun": {name: doubled(value) for name, value in options.items()}, "python": doubled(python)}
    made = planned(tmp_path, slurm=slurm)
    if isinstance(made, JobError):
        assert refused_by_field(made, "slurm.srun", "slurm.python")
        return
    script = render(made, "slurm").text
    assert {f"--{name}={value}" for name, value in options.items()} <= set(srun_words(script))
    subprocess.run(["bash", "-n"], input=script.encode(), check=True, capture_output=True)


@pytest.fixture(scope="module")
def exported() -> Callable[[str], dict[str, str]]:
    """Return what DeepSpeed's pdsh runner makes of a .deepspeed_env, read back by bash."""
    from deepspeed.launcher.multinode_runner import MultiNodeRunner

    class Runner(MultiNodeRunner):
        def backend_exists(self) -> bool:
            return True

        def get_cmd(self, environment: object, active_resources: object) -> None:
            raise NotImplementedError

        def parse_user_args(self) -> list[str]:
            return []

    def read(text: str) -> dict[str, str]:
        runner = Runner.__new__(Runner)
        runner.exports = {}
        for line in text.splitlines(keepends=True):  # as deepspeed.launcher.runner.main does
            key, value = line.split("=", maxsplit=1)
            runner.add_export(key, value)
        lines = "".join(f"export {key}={value}; " for key, value in runner.exports.items())
        code = "import json, os; print(json.dumps(dict(os.environ)))"
        done = subprocess.run(
            ["bash", "-c", f"{lines} exec {shlex.quote(sys.executable)} -S -c '{code}'"],
            capture_output=True, check=True, env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        return dict(json.loads(done.stdout))

    return read


@pytest.mark.train
@given(env=ENV)
@example(
    env={
        f"V{i}": text
        for i, text in enumerate(TRICKS)
        if not set(text) & set('"$`\\\0\n\r\t\x7f\x85\u2028') and text == text.strip()
    }
)
@settings(BOUNDED, max_examples=25)
def test_deepspeed_exports_every_variable_unchanged(
    tmp_path: Path, exported: Callable[[str], dict[str, str]], env: dict[str, str]
) -> None:
    made = planned(tmp_path, env={name: doubled(value) for name, value in env.items()}, hostfile={"hosts": "a"})
    try:
        files = render(made, "hostfile").files if not isinstance(made, JobError) else None
    except JobError as error:
        made, files = error, None
    if files is None:
        assert isinstance(made, JobError) and refused_by_field(made, *(f"env.{name}" for name in env))
        return
    seen = exported(files[".deepspeed_env"])
    assert {name: seen.get(name) for name in env} == env


@pytest.mark.train
@given(
    hosts=st.lists(
        st.one_of(TEXT, st.from_regex(r"[a-z][a-z0-9.-]{0,10}[a-z0-9]", fullmatch=True)),
        min_size=1,
        max_size=4,
        unique=True,
    )
)
@BOUNDED
def test_deepspeed_reads_the_hosts_that_were_written(tmp_path: Path, hosts: list[str]) -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    made = planned(
        tmp_path,
        hostfile={"hosts": [doubled(host) for host in hosts]},
        cluster={**PINNED["cluster"], "nodes": len(hosts)},
    )
    if isinstance(made, JobError):
        assert refused_by_field(made, "hostfile.hosts")
        return
    try:
        text = render(made, "hostfile").text
    except JobError as error:  # a,b is two hosts
        assert refused_by_field(error, "hostfile.hosts")
        return
    (tmp_path / "hostfile").write_text(text, "utf-8")
    assert list(fetch_hostfile(str(tmp_path / "hostfile"))) == [h.strip() for host in hosts for h in host.split(",")]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


@given(value=st.dictionaries(TEXT, JSON, max_size=5))
@settings(BOUNDED, max_examples=150)
def test_every_yaml_and_json_reader_sees_what_was_written(value: dict[str, Any]) -> None:
    assert json.loads(to_json(value)) == value
    text = to_yaml(value)
    for loader in (yaml.SafeLoader, yaml.CSafeLoader):
        assert yaml.load(text, Loader=loader) == value


@given(
    text=st.text(max_size=400)
    | st.lists(
        st.sampled_from(["{", "}", "[", "]", ":", "- ", "&a ", "*a", "\n", "  ", "!", "'", '"', "x", "|", "<<", "\t"]),
        max_size=60,
    ).map("".join)
)
@settings(BOUNDED, max_examples=200)
def test_any_text_as_a_job_is_one_of_our_errors(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(text.encode("utf-8", "replace"))
    with pytest.raises(JobError) as caught:
        load_job([path], sets=[text[:30]] if text else [], environ={})
    assert str(caught.value)


@given(value=TEXT)
@settings(BOUNDED, max_examples=100)
def test_any_set_is_a_job_or_one_of_our_errors(tmp_path: Path, value: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(PINNED), "utf-8")
    for field in ("output", "train.learning_rate", "env.X", "data", "cluster.gpu", value):
        try:
            load_job([path], sets=[f"{field}={value}"], environ={})
        except JobError as error:
            assert error.problems
