"""Data sets by name over real sockets: fetched once, pinned to the run, offline afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_job.cli import main
from qwen_job.data import sources
from qwen_job.data.rows import read_rows
from qwen_job.data.sources import Source, cached_data, fetch_data, local_data
from qwen_job.errors import DataError, EnvironmentFault
from qwen_job.remote import download
from qwen_job.run.config import TrainConfig, parse_config
from tests.data.conftest import conversation
from tests.support.hub_server import COMMIT, HubServer, serving

modelscope_hub = pytest.importorskip("modelscope_hub", reason="needs the extra hub")
huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs the extra hub")

pytestmark = pytest.mark.usefixtures("server")
BOTH = pytest.mark.parametrize("hub", ["hf", "ms"])
BIG = "data/train-00000-of-00002.jsonl"
OFFLINE = {"hf": "HF_HUB_OFFLINE", "ms": "QWEN_JOB_OFFLINE"}
FETCH = (
    "import sys, pathlib; import huggingface_hub.constants; huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 4096;"
    "from qwen_job.data.sources import Source, fetch_data;"
    "fetch_data(Source(sys.argv[2], None, pathlib.Path(sys.argv[1])), print);"
    "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
)


def rows(count: int, text: str = "你好") -> bytes:
    """Return JSON Lines of conversations."""
    lines = [json.dumps(conversation(f"{text} {number}", "答" * 50), ensure_ascii=False) for number in range(count)]
    return "\n".join(lines).encode()


FILES = {
    BIG: rows(1500),
    "data/train-00001-of-00002.jsonl": rows(7, "more"),
    "data/test-00000-of-00001.jsonl": rows(5, "test"),
    "README.md": b"# chats",
    "picture.png": b"picture",
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setattr(download, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0.01)
    monkeypatch.setattr("modelscope_hub._legacy_api.REPO_TREE_PAGE_RETRY_MAX_DELAY_SECONDS", 0.01)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "huggingface"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(home / "modelscope"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(home / "modelscope-cache"))
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "MODELSCOPE_API_TOKEN", "QWEN_JOB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with serving(dict(FILES)) as server:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.address)
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def fetch(cache: Path, text: str, **options: Any) -> list[Path]:
    return fetch_data(Source(text, options.pop("revision", None), cache), lambda _: None, **options).files


def config(folder: Path, *train: Any, resume: str = "auto") -> TrainConfig:
    model = {"name": "owner/tiny", "source": "modelscope", "cache_dir": str(folder / "cache")}
    values = {"name": "x", "output_dir": str(folder / "run"), "model": model, "data": {"train": list(train)}}
    return parse_config({**values, "resume": resume}, "train.yaml")


@BOTH
def test_the_shards_of_train_come_once_and_need_no_network_afterwards(
    server: HubServer, tmp_path: Path, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fetch(tmp_path, f"{hub}:owner/chats")
    assert [path.read_bytes() for path in files] == [FILES[BIG], FILES["data/train-00001-of-00002.jsonl"]]
    assert set(server.asked) == {BIG, "data/train-00001-of-00002.jsonl", "README.md"}
    monkeypatch.setenv(OFFLINE[hub], "1")
    before = server.requests
    assert fetch(tmp_path, f"{hub}:owner/chats") == files
    assert server.requests == before


@BOTH
def test_another_split_is_fetched_beside_it(server: HubServer, tmp_path: Path, hub: str) -> None:
    fetch(tmp_path, f"{hub}:owner/chats")
    (test,) = fetch(tmp_path, f"{hub}:owner/chats:test")
    assert len(list(read_rows(test))) == 5
    assert server.asked[BIG] == 1


def test_another_split_is_of_the_same_commit(server: HubServer, tmp_path: Path) -> None:
    fetch(tmp_path, "hf:owner/chats")
    server.push({"test.jsonl": rows(3, "newer")})
    (test,) = fetch(tmp_path, "hf:owner/chats:test")
    assert len(list(read_rows(test))) == 5


@BOTH
def test_a_killed_fetch_resumes_in_the_next_process(server: HubServer, tmp_path: Path, hub: str) -> None:
    server.stall_after[BIG] = 100_000
    name = f"{hub}:owner/chats"
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}
    with subprocess.Popen([sys.executable, "-c", FETCH, tmp_path, name], env=environment) as process:
        assert server.stalled.wait(60)
        time.sleep(0.5)  # until it wrote what was sent
        process.kill()
    server.cut.set()
    assert fetch(tmp_path, name)[0].read_bytes() == FILES[BIG]
    assert [int(asked.strip("bytes=-")) > 50_000 for asked in server.ranges] == [True]


@BOTH
def test_wrong_bytes_are_fetched_again_and_then_refused(server: HubServer, tmp_path: Path, hub: str) -> None:
    server.wrong[BIG] = 1
    assert fetch(tmp_path / "a", f"{hub}:owner/chats")[0].read_bytes() == FILES[BIG]
    server.wrong[BIG] = 99
    with pytest.raises(DataError, match="other bytes than the hash"):
        fetch(tmp_path / "b", f"{hub}:owner/chats")


def test_processes_that_start_together_fetch_once(server: HubServer, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", FETCH, tmp_path, "hf:owner/chats"]
    ran = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait(120) for process in ran] == [0, 0, 0]
    assert server.asked[BIG] == 1


def test_a_run_stays_at_its_commit_when_the_hub_moves_on(server: HubServer, tmp_path: Path) -> None:
    settings = config(tmp_path, "hf:owner/chats")
    before = [file.path.read_bytes() for file in local_data(settings, print).data.train]
    server.push({"train.jsonl": rows(3, "newer")})
    assert [file.path.read_bytes() for file in local_data(settings, print).data.train] == before
    pinned = json.loads(settings.folder.sources.read_text())["sources"]["hf:owner/chats"]
    assert (pinned["commit"], pinned["revision"]) == (COMMIT, "main")


def test_a_run_whose_cache_is_gone_fetches_its_commit_again(server: HubServer, tmp_path: Path) -> None:
    settings = config(tmp_path, "hf:owner/chats")
    before = local_data(settings, print).data.train
    server.push({"train.jsonl": rows(3, "newer")})
    (tmp_path / "cache").rename(tmp_path / "lost")
    assert local_data(settings, print).data.train == before


def test_newer_takes_the_newest_and_leaves_runs_alone(server: HubServer, tmp_path: Path) -> None:
    settings = config(tmp_path, "hf:owner/chats")
    before = local_data(settings, print).data.train
    server.push({"train.jsonl": rows(3, "newer")})
    (newest,) = fetch(tmp_path / "cache", "hf:owner/chats", newer=True)
    assert newest.read_bytes() == rows(3, "newer")
    assert fetch(tmp_path / "cache", "hf:owner/chats") == [newest]
    assert local_data(settings, print).data.train == before


def test_a_commit_that_vanished_is_named_with_what_to_do(server: HubServer, tmp_path: Path) -> None:
    settings = config(tmp_path, "hf:owner/chats")
    local_data(settings, print)
    server.push({"train.jsonl": rows(3, "newer")})
    del server.commits[COMMIT]
    (tmp_path / "cache").rename(tmp_path / "lost")
    with pytest.raises(DataError, match=r"data.train\[0\]: .*has changed since this run began: .*resume: changed"):
        local_data(settings, print)
    changed = config(tmp_path, "hf:owner/chats", resume="changed")
    assert [file.path.read_bytes() for file in local_data(changed, print).data.train] == [rows(3, "newer")]


def test_a_changed_file_on_modelscope_is_refused_when_the_cache_is_gone(server: HubServer, tmp_path: Path) -> None:
    settings = config(tmp_path, "ms:owner/chats")
    local_data(settings, print)
    (tmp_path / "cache").rename(tmp_path / "lost")
    server.files = {**FILES, "data/extra.jsonl": rows(1)}
    assert local_data(settings, print).data.train[0].path.read_bytes() == FILES[BIG]
    (tmp_path / "cache").rename(tmp_path / "lost too")
    server.files = {**FILES, BIG: rows(1500, "other")}
    with pytest.raises(DataError, match=rf"has changed since this run began: {BIG} is another file"):
        local_data(settings, print)


def test_weights_and_order_are_kept_and_paths_stay(tmp_path: Path) -> None:
    entries = [{"path": "/data/own.json"}, {"path": "hf:owner/chats", "weight": 2.0}, {"path": "hf:owner/chats:test"}]
    found = local_data(config(tmp_path, *entries), print).data.train
    assert [(file.path.name, file.weight) for file in found] == [
        ("own.json", 1.0),
        (Path(BIG).name, 2.0),
        ("train-00001-of-00002.jsonl", 2.0),
        ("test-00000-of-00001.jsonl", 1.0),
    ]
    assert {file.source for file in found} == {None}


def test_a_run_without_names_touches_nothing(tmp_path: Path) -> None:
    settings = config(tmp_path, "/data/own.json")
    assert local_data(settings, print) is settings
    assert not settings.folder.path.exists()


def test_a_revision_is_fetched_and_pinned(server: HubServer, tmp_path: Path) -> None:
    server.push({"train.jsonl": rows(3, "newer")})
    server.files = server.commits[COMMIT]
    files = fetch(tmp_path, "hf:owner/chats:test", revision=COMMIT)
    assert [path.read_bytes() for path in files] == [FILES["data/test-00000-of-00001.jsonl"]]


@BOTH
def test_what_the_users_own_cache_holds_is_not_downloaded(server: HubServer, tmp_path: Path, hub: str) -> None:
    if hub == "ms":
        modelscope_hub.HubApi(modelscope_hub.HubConfig()).download_repo("owner/chats", "dataset")
    else:
        huggingface_hub.snapshot_download("owner/chats", repo_type="dataset", endpoint=server.address)
    server.asked.clear()
    assert fetch(tmp_path, f"{hub}:owner/chats")[0].read_bytes() == FILES[BIG]
    assert set(server.asked) <= {"README.md"}


@BOTH
def test_a_damaged_file_is_fetched_again(server: HubServer, tmp_path: Path, hub: str) -> None:
    files = fetch(tmp_path, f"{hub}:owner/chats")
    files[0].write_bytes(b"cut")
    assert fetch(tmp_path, f"{hub}:owner/chats") == files
    assert (files[0].read_bytes(), server.asked["data/train-00001-of-00002.jsonl"]) == (FILES[BIG], 1)


def test_verify_finds_bytes_that_rotted(tmp_path: Path) -> None:
    files = fetch(tmp_path, "hf:owner/chats")
    files[0].write_bytes(bytes(len(FILES[BIG])))
    assert fetch(tmp_path, "hf:owner/chats")[0].read_bytes() != FILES[BIG]
    assert fetch(tmp_path, "hf:owner/chats", verify=True)[0].read_bytes() == FILES[BIG]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:owner/nothing", r"owner/nothing: not found \(404\) on http://127.*check the data set's ID"),
        ("ms:owner/nothing", r"owner/nothing: not found \(404\) on http://127.*check the data set's ID"),
        ("hf:owner/secret", r"denied access \(403\).*set HF_TOKEN"),
        ("ms:owner/secret", r"denied access \(403\).*set MODELSCOPE_API_TOKEN"),
        ("hf:owner/chats:tset", r"has no split 'tset'; its splits: test, train; did you mean 'test'\?$"),
        ("hf:owner/chats:en:train", r"has no subset and no folder 'en'; its files: README.md"),
        ("hf:owner/chats/data/*.csv", r"no file has that name; its files: README.md"),
        ("hf:owner/chats/*.png", r"holds no JSON, JSON Lines or Parquet; its files: picture.png"),
        ("hf:owner", "names no data set: write hf:owner/name"),
    ],
)
def test_data_that_cannot_be_had_is_refused_with_what_there_is(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fetch(tmp_path, name)


@BOTH
def test_an_empty_data_set_is_refused(server: HubServer, tmp_path: Path, hub: str) -> None:
    server.push({})
    with pytest.raises(DataError, match="has no files at revision"):
        fetch(tmp_path, f"{hub}:owner/chats")


@BOTH
def test_no_network_says_what_to_do(tmp_path: Path, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(EnvironmentFault, match=r"cannot be reached .*qwen-job data fetch"):
        fetch(tmp_path, f"{hub}:owner/chats")


@BOTH
def test_offline_without_a_copy_is_refused(
    server: HubServer, tmp_path: Path, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OFFLINE[hub], "1")
    with pytest.raises(EnvironmentFault, match=f"{OFFLINE[hub]} forbids downloads; run 'qwen-job data fetch {hub}:"):
        fetch(tmp_path, f"{hub}:owner/chats")
    assert not server.requests


def test_no_room_is_reported_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        f_bavail, f_frsize = 1, 512

    monkeypatch.setattr(download.os, "statvfs", lambda _: Full)
    with pytest.raises(EnvironmentFault, match=r"free space or fix rights, or choose .*data\.cache_dir"):
        fetch(tmp_path, "hf:owner/chats")


@BOTH
def test_a_file_outside_the_data_set_is_refused(server: HubServer, tmp_path: Path, hub: str) -> None:
    server.push({"../evil.jsonl": b"{}"})
    with pytest.raises(DataError, match="outside the data set"):
        fetch(tmp_path, f"{hub}:owner/chats")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"sources": 3}',
        '{"sources": {"hf:owner/chats": {"version": "../x"}}}',
        '{"sources": ' + "[" * 100_000,
    ],
    ids=["empty", "list", "number", "outside", "deep"],
)
def test_a_damaged_record_of_a_run_is_written_again(tmp_path: Path, text: str) -> None:
    settings = config(tmp_path, "hf:owner/chats")
    local_data(settings, print)
    whole = settings.folder.sources.read_text()
    settings.folder.sources.write_text(text)
    local_data(settings, print)
    assert settings.folder.sources.read_text() == whole


def test_a_token_is_written_nowhere(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret-8f1c")
    lines: list[str] = []
    local_data(config(tmp_path, "hf:owner/chats"), lines.append)
    assert "Bearer hf_secret-8f1c" in server.tokens
    assert "secret" not in "".join(lines)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]


def test_the_command_fetches_and_prints_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["data", "fetch", "hf:owner/chats:test", "--cache", str(tmp_path)])
    assert end.value.code == 0
    out, err = capsys.readouterr()
    path = Path(out.strip())
    assert path.read_bytes() == FILES["data/test-00000-of-00001.jsonl"]
    assert f"1 file, 0.0 MB at commit {COMMIT}" in err


def test_commands_read_data_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_JOB_CACHE", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        main(["data", "check", "hf:owner/chats:test"])
    assert end.value.code == 0
    assert "5 rows" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["data", "clean", "hf:owner/chats", str(tmp_path / "out.jsonl")])
    assert end.value.code == 2
    assert "has 2 files; give one of them" in capsys.readouterr().err


def test_prepare_fetches_into_its_output_which_a_job_then_uses(
    server: HubServer, tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "prepare", "hf:owner/chats:test", "--tokenizer", str(tiny), "--output", str(tmp_path), "--json"]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["stats"]["train"]["samples"] == 5
    assert fetch(tmp_path, "hf:owner/chats:test")[0].is_relative_to(tmp_path / "data" / "huggingface")
    assert server.asked["data/test-00000-of-00001.jsonl"] == 1


def test_check_reads_the_names_of_a_job_at_their_revisions(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.push({"test.jsonl": rows(3, "newer")})
    job = tmp_path / "job.yaml"
    job.write_text("name: x\nmodel: {name: qwen2-tiny, source: random}\noutput: runs/x\ncluster: {gpu: CPU}\n"
                   f"data: {{train: [{{path: 'hf:owner/chats:test', revision: {COMMIT}}}]}}\n")  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main(["data", "check", str(job)])
    assert end.value.code == 0
    assert "5 rows" in capsys.readouterr().out


def test_a_plan_downloads_nothing_and_counts_what_is_in_the_cache(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("name: x\nmodel: {name: qwen2-tiny, source: random}\noutput: runs/x\ncluster: {gpu: CPU}\n"
                   "data: 'hf:owner/chats:test'\n")  # fmt: skip

    def plan() -> str:
        with pytest.raises(SystemExit) as end:
            main(["plan", str(job)])
        assert end.value.code == 0
        return capsys.readouterr().out

    cache = tmp_path / "runs" / ".qwen-job-cache"
    assert f"hf:owner/chats:test is not in the cache {cache}, and the run will fetch it; use --samples" in plan()
    assert not server.requests
    assert cached_data(Source("hf:owner/chats:test", None, cache)) is None
    fetch(cache, "hf:owner/chats:test")
    assert "5 conversations" in plan()


def test_names_are_masked_in_records(tmp_path: Path) -> None:
    source = Source("https://host/a.jsonl?v=private", None, tmp_path)
    assert "private" not in str(sources._base(source))
