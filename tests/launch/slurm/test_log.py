"""Where a Slurm job's log goes: folders are made, nothing in their names is expanded, nodes must see them."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from qwen_job.errors import EnvironmentFault
from qwen_job.launch.slurm import log as slurm_log
from qwen_job.launch.slurm.entries import jobs_of
from qwen_job.launch.slurm.log import log_options, seen_by_nodes
from qwen_job.render.bundle import Request


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "runs" / "tiny")


def test_a_plain_folder_needs_no_words(tmp_path: Path, run: str) -> None:
    assert log_options(Request({"output": "%x-%j.out"}, {}), run, tmp_path) == []
    assert not Path(run).exists()


@pytest.mark.parametrize("name", ["output", "error"])
def test_a_percent_in_the_folder_is_a_percent(tmp_path: Path, run: str, name: str) -> None:
    here = tmp_path / "50%j"
    here.mkdir()
    assert log_options(Request({name: "%x-%j.out"}, {}), run, here) == [f"--{name}={tmp_path}/50%%j/%x-%j.out"]
    assert log_options(Request({name: "%x.out", "chdir": "a%u"}, {}), run, here) == [
        f"--{name}={tmp_path}/50%%j/a%%u/%x.out"
    ]


def test_folders_are_made_also_those_named_by_what_is_known(tmp_path: Path, run: str) -> None:
    log_options(Request({"output": f"{tmp_path}/logs/%u/%x/50%%/%j.out", "job-name": "tiny"}, {}), run, tmp_path)
    assert (tmp_path / "logs" / getpass.getuser() / "tiny" / "50%").is_dir()


@pytest.mark.parametrize(
    ("written", "said"), [("logs/%j/x.out", "Slurm does not create folders"), ("taken/x.out", "cannot be created")]
)
def test_a_folder_that_cannot_be_made_is_refused_by_its_field(
    tmp_path: Path, run: str, written: str, said: str
) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(EnvironmentFault, match=f"^slurm.sbatch.output: .*{said}"):
        log_options(Request({"output": written}, {"output": "slurm.sbatch.output"}), run, tmp_path)


def test_from_a_folder_that_nodes_do_not_see_the_log_goes_to_the_run(
    tmp_path: Path, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_log, "seen_by_nodes", lambda *_: False)
    words = log_options(Request({"output": "%x-%j.out"}, {}), run, tmp_path)
    assert words == [f"--chdir={run}/logs", f"--output={run}/logs/%x-%j.out"] and Path(run, "logs").is_dir()
    assert log_options(Request({"output": "/shared/%j"}, {}), run, tmp_path) == []


@pytest.mark.parametrize(
    ("folder", "run", "seen"),
    [
        ("/home/me", "/home/me/runs/a", True), ("/home/me", "/lustre/a", True), ("/home/me", "/tmp/a", True),
        ("/tmp/x", "/home/me/a", False), ("/tmp/x", "/tmp/a", True), ("/tmp/x", "/tmp/shared/a", False),
        ("/tmp/shared/b", "/tmp/shared/a", True), ("/dev/shm/x", "/home/me/a", False), ("/ram/x", "/lustre/a", False),
        ("/tmpfoo", "/home/me/a", True), ("/run/user/1", "/lustre/a", False),
    ],
)  # fmt: skip
def test_what_nodes_see(folder: str, run: str, seen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = {"/": "ext4", "/lustre": "lustre", "/tmp": "tmpfs", "/tmp/shared": "nfs", "/ram": "tmpfs", "/run": "tmpfs"}
    monkeypatch.setattr(slurm_log, "_mounts", lambda: mounts)
    assert seen_by_nodes(Path(folder), run) is seen


@pytest.mark.parametrize(
    ("given", "path"),
    [("/l/%x-%j.out", "/l/tiny-7.out"), ("/50%%/%4j", "/50%/0007"), ("/%u/%N", "/me/%N"), ("/a%%j", "/a%j")],
)
def test_the_log_is_named_as_slurm_names_it(given: str, path: str) -> None:
    job = '{"jobs": [{"job_id": 7, "name": "tiny", "user_name": "me", "standard_output": "%s"}]}'
    assert jobs_of(job % given)[0].log == path
