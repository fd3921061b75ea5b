"""model push, through the libraries' own upload code, to a hub on loopback: 2 s each, most of it their imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from qwen_job.models.tensors import NewTensor, read_folder, write_tensors
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


def pushing(hub: UploadHub, home: Path, *words: object, **more: str) -> subprocess.Popen[str]:
    home.mkdir(exist_ok=True)
    endpoints = {"HF_ENDPOINT": hub.address, "MODELSCOPE_ENDPOINT": hub.address}
    tokens = {"HF_TOKEN": TOKEN, "MODELSCOPE_API_TOKEN": TOKEN}
    # The stub speaks git-lfs, as hubs do to a client without hf_xet.
    own = {"HOME": str(home), "QWEN_JOB_CACHE": str(home / "cache"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    environment = {"PATH": os.environ["PATH"], **endpoints, **tokens, **own, **more}
    command = [sys.executable, "-m", "qwen_job", "model", "push", *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=PIPE, stderr=PIPE, text=True)


def push(hub: UploadHub, home: Path, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    with pushing(hub, home, *words, **more) as process:
        output, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


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


@pytest.fixture(scope="module")
def in_four_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are four files."""
    model = write_folder(tmp_path_factory.mktemp("shards") / "model", "qwen2")
    stored = [NewTensor(t.name, t.dtype, t.shape, [b"".join(t.read())]) for t in read_folder(model).values()]
    (model / WEIGHTS).unlink()
    files = {f"model-{n + 1:05}-of-00004.safetensors": stored[n::4] for n in range(4)}
    for name, tensors in files.items():
        write_tensors(model / name, tensors)
    where = {tensor.name: name for name, tensors in files.items() for tensor in tensors}
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return model


@BOTH
def test_a_push_that_was_killed_sends_only_the_rest(
    hub: UploadHub, tmp_path: Path, in_four_files: Path, prefix: str
) -> None:
    words = (in_four_files, f"{prefix}:owner/tiny", "--yes")
    hub.take = 2
    with pushing(hub, tmp_path / "home", *words) as process:
        assert hub.waiting.wait(120)
        # Those before it arrive in other threads.
        while len(hub.sent) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    first = list(hub.sent)
    assert len(first) == 2 and hub.repos["owner/tiny"].files == {}
    hub.take = None
    hub.go.set()
    done = push(hub, tmp_path / "home", *words)
    assert done.returncode == 0, done.stderr
    # Each of the four once, over both pushes.
    assert hub.sent[:2] == first and len(hub.sent) == len(set(hub.sent)) == 4
    kept = hub.repos["owner/tiny"].files
    assert kept.keys() >= {path.name for path in in_four_files.glob("*.safetensors")}
    assert all((in_four_files / name).read_bytes() == data for name, data in kept.items())


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
