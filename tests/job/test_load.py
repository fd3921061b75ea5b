"""From files, layers and --set to a Job, or to every problem with its place."""

# ruff: noqa: E501 - tables, one case a line
from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_job.errors import EnvironmentFault, JobError
from qwen_job.job import load_job
from tests.jobs import FIVE_LINES, load, problems, write


def test_five_lines_are_a_job(tmp_path: Path) -> None:
    job = load(tmp_path)
    assert (job.model.name, job.model.resolved_source) == ("Qwen/Qwen-1_8B-Chat", "modelscope")
    assert [file.path for file in job.data.train] == ["/data/chats.json"]
    assert job.wrote("cluster", "gpus_per_node") and not job.wrote("cluster", "nodes")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trian: {}", "job.yaml:6:1: trian: unknown field; did you mean 'train'?"),
        ("train: {learning_rat: 1}", "job.yaml:6:9: train.learning_rat: unknown field; did you mean 'train.learning_rate'?"),
        ("train: {lr: 1}", "job.yaml:6:9: train.lr: is written 'learning_rate' here"),
        ("train: {output_dir: x}", "job.yaml:6:9: train.output_dir: is not set here: use output at the top level"),
        ("train: {run_name: 5}", "job.yaml:6:9: train.run_name: expected text, not 5"),
        ("train:\n  learning_rate: fast", "job.yaml:7:3: train.learning_rate: expected a number, not 'fast'"),
        ("train: {report_to: [tensorbord]}", "did you mean 'tensorboard'?"),
        ("train: {max_grad_norm: .inf}", "job.yaml:6:24: train.max_grad_norm: .inf is not a finite number, which JSON cannot represent"),
        ("partition: gpu", "job.yaml:6:1: partition: unknown field; did you mean 'slurm.partition'?"),
        ("slurm: {tme: 4}", "job.yaml:6:9: slurm.tme: unknown field; did you mean 'slurm.time'?"),
        ("slurm: {time: soon}", "job.yaml:6:9: slurm.time: 'soon' is not a duration: write 90s, 5m, 2h30m, 12:30:00 or 1-00:00:00"),
        ("slurm: {sbatch: {'a b': x}}", "job.yaml:6:18: slurm.sbatch.a b: 'a b' is not a valid option name: write a-b"),
        ("slurm: {partition: ' '}", "job.yaml:6:9: slurm.partition: is empty"),
        ('slurm: {partition: "a\\nb"}', "job.yaml:6:9: slurm.partition: contains the control character '\\n'; write it on one line, without it"),
        ("container: {runtime: dokcer}", "did you mean 'docker'?"),
        ("env: {1A: x}", "job.yaml:6:7: env.1A: '1A' is not a valid variable name: use letters, digits and _, and no digit first"),
        ("env: {UID: 5}", "job.yaml:6:7: env.UID: UID is reserved by bash, which starts the processes; choose another name"),
        ("env: {A: [1]}", "job.yaml:6:7: env.A: expected text, not [1]"),
        ('env: {A: "x\\0y"}', "job.yaml:6:7: env.A: contains a NUL character, which shells and file names cannot contain; remove it"),
        ("env: {A: '${HOME}'}", "job.yaml:6:7: env.A: ${HOME} is not declared; add HOME to uses_env, or write $${HOME} for the literal text"),
        ("env: {A: '${B:-c}'}", "job.yaml:6:7: env.A: ${B:-c} is not a plain variable name; write ${NAME}, or $${B:-c} for the literal text"),
        ("env: {A: '${B}'}\nuses_env: [B]", "job.yaml:6:7: env.A: ${B} is declared in uses_env but not set in this shell"),
        ("hostfile: {hosts: 'gpu[3-1]'}", "job.yaml:6:12: hostfile.hosts[0]: [3-1] runs backwards or is too long"),
        ("hostfile: {hosts: 'a b'}", "job.yaml:6:12: hostfile.hosts[0]: 'a b' is not a host name; write gpu01, gpu[001-128] or an address"),
        ("local: {python: 3}", "job.yaml:6:9: local.python: expected text, not 3"),
        ("retry: {max_retries: -1}", "job.yaml:6:9: retry.max_retries: -1 is too small: write 0 or more (Maximum number of times the job requeues itself)"),
    ],
)  # fmt: skip
def test_a_problem_names_its_place_and_the_way_out(tmp_path: Path, text: str, expected: str) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1 and found[0].endswith(expected)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("cluster.gpus_per_node=0", "cluster.gpus_per_node: 0 is too small: write 1 or more"),
        ("cluster.nodes=two", "cluster.nodes: expected a whole number, not 'two'"),
        ("cluster.gpu=5", "cluster.gpu: expected text or 'field: value' lines, not 5"),
        ("cluster.gpu={name: X}", "cluster.gpu.memory_gib: is required"),
        ("cluster.gpu=A1000", "cluster.gpu: "),
        ("data=5", "data: expected 'field: value' lines, not 5"),
        ("data.train=[]", "data.train: needs at least 1 item"),
        ("name='-x'", "name: '-x' has the wrong form (Name of the job: letters"),
        ("output=~nosuchuser/x", "output: '~nosuchuser/x': no such user; write the folder in full"),
        ("train.bf16=1", "train.bf16: expected true or false, not 1"),
    ],
)  # fmt: skip
def test_a_set_is_checked_like_a_file(tmp_path: Path, assignment: str, expected: str) -> None:
    found = problems(tmp_path, "", assignment)
    assert any(text.startswith(f"--set: {expected}") for text in found), found


def test_all_problems_come_at_once_in_the_file_s_order(tmp_path: Path) -> None:
    found = problems(tmp_path, "train: {learning_rate: x, lr: 1}\nslurm:\n  tme: 1\ncolour: red\nenv: {A: '${B}'}\n")
    assert [text.split(": ")[1] for text in found] == [
        "train.learning_rate", "train.lr", "slurm.tme", "colour", "env.A",
    ]  # fmt: skip


def test_what_is_missing_is_named_with_an_example(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: x\ncluster: {nodes: 2}\n")
    with pytest.raises(JobError) as caught:
        load_job([path])
    assert {problem.field for problem in caught.value.problems} == {"model", "data", "output", "cluster.gpu"}
    assert "e.g. Qwen/Qwen-1_8B-Chat" in str(caught.value)


def test_a_section_of_comments_only_counts_as_not_written(tmp_path: Path) -> None:
    assert load(tmp_path, "slurm:\n  # partition: gpu\nenv:\n").slurm.partition is None


def test_variables_of_the_shell_are_taken_when_declared(tmp_path: Path) -> None:
    text = "uses_env: [WHO]\nenv: {A: 'x${WHO}y', B: '$${WHO}', C: '$WHO'}\nslurm: {setup: ['echo ${WHO}']}\n"
    job = load(tmp_path, text, environ={"WHO": "me", "OTHER": "x"})
    assert job.env == {"A": "xmey", "B": "${WHO}", "C": "$WHO"}
    assert job.slurm.setup == ["echo ${WHO}"]


def test_the_process_s_own_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHO", "you")
    assert load_job([write(tmp_path, "uses_env: [WHO]\nenv: {A: '${WHO}'}\n")]).env == {"A": "you"}


def test_layers_add_to_short_forms(tmp_path: Path) -> None:
    site = write(
        tmp_path, base="model: {cache_dir: /cache}\ndata: {packing: false}\nslurm: {partition: a}\n", name="site.yaml"
    )
    job = load_job([site, write(tmp_path, "slurm: {account: b}\n")], sets=["model.source=huggingface"])
    assert (job.model.name, job.model.cache_dir, job.model.source) == ("Qwen/Qwen-1_8B-Chat", "/cache", "huggingface")
    assert not job.data.packing and job.data.train[0].path == "/data/chats.json"
    assert (job.slurm.partition, job.slurm.account) == ("a", "b")


def test_a_layer_s_problem_names_the_layer(tmp_path: Path) -> None:
    site = write(tmp_path, base="slurm: {time: soon}\n", name="site.yaml")
    with pytest.raises(JobError, match=r"site\.yaml:1:9: slurm\.time"):
        load_job([site, write(tmp_path)])


def test_relative_paths_belong_to_the_file_that_wrote_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("sub/chats.json", "b.json"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    base = FIVE_LINES.replace("/data/chats.json", "[chats.json, ../b.json]").replace("/runs/tiny", "run")
    job = load_job([write(tmp_path / "sub", "", base=base, name="myjob")], sets=["data.cache_dir=here"])
    assert [file.path for file in job.data.train] == [f"{tmp_path}/sub/chats.json", f"{tmp_path}/b.json"]
    assert (job.output, job.data.cache_dir) == (f"{tmp_path}/sub/run", f"{tmp_path}/here")


def test_a_folder_as_model_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    job = load(tmp_path, "", "model=./m", "model.cache_dir=c")
    assert (job.model.resolved_source, job.model.name) == ("local", str(Path.cwd() / "m"))
    assert load(tmp_path, "", "model={name: a/b, source: huggingface}").model.resolved_source == "huggingface"


def test_home_is_the_user_s(tmp_path: Path) -> None:
    assert load(tmp_path, "", "output=~/x").output == str(Path.home() / "x")


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + FIVE_LINES.replace("\n", "\r\n").encode())
    assert load_job([path]).name == "tiny"


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(FIVE_LINES.encode() + "env: {A: 你好}\n".encode("gbk"))
    with pytest.raises(JobError, match=r"job\.yaml:6:1: is not UTF-8 text"):
        load_job([path])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch.yaml", "no such file; 'qwen-job init' writes"), ("nosuch", r"\(a job file ends in .yaml\)"),
        ("", "is a folder; name the job file"), ("job.yaml/x", "cannot be read: Not a directory"),
        ("x" * 300, "cannot be read: File name too long"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_an_environment_fault(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path)
    with pytest.raises(EnvironmentFault, match=message):
        load_job([tmp_path / name])


def test_a_huge_file_is_not_a_job(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    with path.open("wb") as stream:
        stream.truncate(2**31)
    with pytest.raises(JobError, match="over 16 MiB"):
        load_job([path])


def test_stdin_is_a_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(FIVE_LINES.replace("/runs", "runs").encode())))
    monkeypatch.chdir(tmp_path)
    assert load_job(["-"]).output == str(tmp_path / "runs/tiny")


def test_a_pipe_s_paths_are_read_from_where_we_stand(tmp_path: Path) -> None:
    write(tmp_path, base=FIVE_LINES.replace("/runs", "runs"))
    code = "import sys; from qwen_job.job import load_job; print(load_job([sys.argv[1]]).output)"
    done = subprocess.run(
        ["bash", "-c", 'exec "$0" -c "$1" <(cat job.yaml)', sys.executable, code],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())}, check=True,
    )  # fmt: skip
    assert done.stdout == f"{tmp_path}/runs/tiny\n"


def test_too_long_a_variable_is_refused(tmp_path: Path) -> None:
    assert "env.BIG: is over 100 kB" in problems(tmp_path, f"env: {{BIG: {'x' * 100_001}}}")[0]


def test_scalars_stand_for_text_in_env_and_options(tmp_path: Path) -> None:
    job = load(
        tmp_path,
        "env: {A: 4, B: true, C: 1.50, D: 1e5, E: 007}\nslurm: {memory: 0, sbatch: {nice: 10, contiguous: true, plugin: }}\n",
    )
    assert job.env == {"A": "4", "B": "true", "C": "1.50", "D": "1e5", "E": "007"}
    assert job.slurm.memory == "0" and job.slurm.sbatch == {"nice": "10", "contiguous": True, "plugin": None}


@pytest.mark.parametrize("field", ["output", "data.cache_dir", "model.cache_dir"])
def test_an_address_is_no_path(tmp_path: Path, field: str) -> None:
    (found,) = problems(tmp_path, "", f"{field}=s3://me:secret@bucket/x")
    assert found.startswith(f"--set: {field}")
    assert "s3:// is not supported" in found
    assert "secret" not in found
