"""model push, through the libraries' own upload code, to a hub on loopback: 2 s each, most of it their imports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tiny_models import write_folder
from tests.support.upload_hub import TOKEN, Repo, UploadHub, taking_uploads

pytestmark = pytest.mark.train  # the hubs' packages and the tokenizer that a model is made with
BOTH = pytest.mark.parametrize("prefix", ["hf", "ms"])
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub() -> Iterator[UploadHub]:
    with taking_uploads() as server:
        yield server
    assert server.refused == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a model, a model card, and files that are nobody's business."""
    run = tmp_path_factory.mktemp("finished")
    model = write_folder(run / "model", "qwen2")
    (model / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: owner/base\n---\n# A model\n")
    (model / "notes.txt").write_text("mine")
    (model / ".env").write_text("SECRET=1")
    (run / "train.yaml").write_text("name: x\n")
    (run / "done.json").write_text("{}")
    return run


def push(hub: UploadHub, home: Path, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    home.mkdir(exist_ok=True)
    endpoints = {"HF_ENDPOINT": hub.address, "MODELSCOPE_ENDPOINT": hub.address}
    tokens = {"HF_TOKEN": TOKEN, "MODELSCOPE_API_TOKEN": TOKEN}
    # The stub speaks git-lfs, as hubs do to a client without hf_xet.
    own = {"HOME": str(home), "QWEN_JOB_CACHE": str(home / "cache"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    environment = {"PATH": os.environ["PATH"], **endpoints, **tokens, **own, **more}
    command = [sys.executable, "-m", "qwen_job", "model", "push", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@BOTH
def test_a_finished_run_goes_up_private_and_whole(hub: UploadHub, tmp_path: Path, finished: Path, prefix: str) -> None:
    done = push(hub, tmp_path / "home", finished, f"{prefix}:owner/tiny", "--yes")
    assert done.returncode == 0, done.stderr
    repo, model = hub.repos["owner/tiny"], finished / "model"
    assert repo.private
    assert set(repo.files) == {path.name for path in model.iterdir()} - {"notes.txt", ".env"}
    assert all((model / name).read_bytes() == data for name, data in repo.files.items())
    assert done.stdout.splitlines()[-1].endswith("owner/tiny") and "Upload Report" not in done.stdout
    # The library's own record of the upload is not left in the model's folder.
    assert not (model / ".ms_upload_cache").exists()


@BOTH
def test_without_yes_the_files_are_listed_and_nothing_is_sent(
    hub: UploadHub, tmp_path: Path, finished: Path, prefix: str
) -> None:
    done = push(
        hub, tmp_path / "home", finished / "model", f"{prefix}:owner/tiny", HF_TOKEN="", MODELSCOPE_API_TOKEN=""
    )
    assert done.returncode == 0 and hub.repos == {}
    assert "(private)" in done.stdout and "left out: .env, notes.txt" in done.stdout
    assert "license: apache-2.0" in done.stdout and "nothing was sent" in done.stderr


@BOTH
def test_a_push_that_failed_resumes_where_it_was(hub: UploadHub, tmp_path: Path, finished: Path, prefix: str) -> None:
    words = (finished, f"{prefix}:owner/tiny", "--yes")
    hub.fail_blobs = 1000
    first = push(hub, tmp_path / "home", *words)
    assert first.returncode != 0 and len(first.stderr.strip().splitlines()[-1]) < 400 and hub.sent == []
    hub.fail_blobs = 0
    assert push(hub, tmp_path / "home", *words).returncode == 0
    assert len(hub.sent) == 1 and WEIGHTS in hub.repos["owner/tiny"].files
    assert push(hub, tmp_path / "home", *words).returncode == 0 and len(hub.sent) == 1


@BOTH
def test_a_public_repository_is_refused_unless_that_is_meant(
    hub: UploadHub, tmp_path: Path, finished: Path, prefix: str
) -> None:
    hub.repos["owner/tiny"] = Repo(private=False)
    words = (finished, f"{prefix}:owner/tiny", "--yes")
    done = push(hub, tmp_path / "home", *words)
    assert done.returncode == 2 and "add --public" in done.stderr and hub.repos["owner/tiny"].files == {}
    assert push(hub, tmp_path / "home", *words, "--public").returncode == 0


@BOTH
def test_a_push_without_a_login_is_one_line(hub: UploadHub, tmp_path: Path, finished: Path, prefix: str) -> None:
    no_tokens = {"HF_TOKEN": "", "MODELSCOPE_API_TOKEN": ""}
    done = push(hub, tmp_path / "home", finished, f"{prefix}:owner/tiny", "--yes", **no_tokens)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 5 and "not logged in: set " in line and " login" in line


@BOTH
def test_a_token_that_may_not_write_is_one_line(hub: UploadHub, tmp_path: Path, finished: Path, prefix: str) -> None:
    hub.denied = True
    done = push(hub, tmp_path / "home", finished, f"{prefix}:owner/tiny", "--yes")
    assert done.returncode == 9 and "denied access (401)" in done.stderr.strip().splitlines()[-1]


def test_what_is_no_finished_export_is_refused(hub: UploadHub, tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = write_folder(run / "model", "qwen2")
    (run / "train.yaml").write_text("name: x\n")
    for path in (run, model):
        done = push(hub, tmp_path / "home", path, "hf:owner/tiny", "--yes")
        assert done.returncode == 9 and "the run has not finished" in done.stderr
    (run / "done.json").write_text("{}")
    (model / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes()[:-8])
    done = push(hub, tmp_path / "home", run, "hf:owner/tiny", "--yes")
    assert done.returncode == 9 and WEIGHTS in done.stderr and hub.repos == {}


@pytest.mark.parametrize("repo", ["owner/tiny", "hf:tiny", "hf://owner/tiny", "gh:owner/tiny", "ms:", "hf:a/b/c"])
def test_a_repository_has_a_hub_and_an_owner(finished: Path, repo: str) -> None:
    from click.testing import CliRunner

    from qwen_job.cli.model import model

    result = CliRunner().invoke(model, ["push", str(finished), repo])
    assert "write hf:OWNER/NAME" in str(result.exception)
