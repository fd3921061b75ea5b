"""Files by their address over real sockets: http (a server here), s3 (moto's) and oss (a server here)."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import boto3
import ossfs
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from qwen_job.data.sources import Source, fetch_data, local_data
from qwen_job.errors import DataError, EnvironmentFault
from qwen_job.remote import addresses, download
from qwen_job.run.config import TrainConfig, parse_config
from tests.support.hub_server import HubServer, serving

assert aiohttp and ossfs and s3fs
CHATS = b"".join(b'{"conversations": [{"from": "user", "value": "%06d"}]}\n' % number for number in range(4000))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(download, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(addresses, "PIECE", 50_000)
    for name in ("QWEN_JOB_OFFLINE", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving({"a.jsonl": CHATS, "empty.jsonl": b""}) as server:
        yield server


def fetch(cache: Path, text: str, **options: Any) -> list[Path]:
    return fetch_data(Source(text, None, cache), lambda _: None, **options).files


def config(folder: Path, name: str, resume: str = "auto") -> TrainConfig:
    model = {"name": "owner/tiny", "source": "modelscope", "cache_dir": str(folder / "cache")}
    values = {"name": "x", "output_dir": str(folder / "run"), "model": model, "data": {"train": [name]}}
    return parse_config({**values, "resume": resume}, "train.yaml")


def test_a_file_comes_once_in_ranges_and_needs_no_network_afterwards(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{server.address}/files/a.jsonl"
    (path,) = fetch(tmp_path, name)
    assert (path.name, path.read_bytes()) == ("a.jsonl", CHATS)
    assert len(server.ranges) == -(-len(CHATS) // 50_000)
    before = server.requests
    monkeypatch.setenv("QWEN_JOB_OFFLINE", "1")
    assert fetch(tmp_path, name) == [path]
    assert server.requests == before


def test_a_server_that_sends_nothing_whole_is_given_up(server: HubServer, tmp_path: Path) -> None:
    server.cut_after["a.jsonl"] = 49_000
    with pytest.raises(EnvironmentFault, match="cannot be reached"):
        fetch(tmp_path, f"{server.address}/files/a.jsonl")
    server.cut_after.clear()
    server.ranges.clear()
    assert fetch(tmp_path, f"{server.address}/files/a.jsonl")[0].read_bytes() == CHATS
    assert server.ranges[0] == "bytes=0-49999"


def test_what_was_read_before_a_break_is_kept(server: HubServer, tmp_path: Path) -> None:
    lines: list[str] = []
    server.break_once_after = 100_000
    source = Source(f"{server.address}/files/a.jsonl", None, tmp_path)
    assert fetch_data(source, lines.append).files[0].read_bytes() == CHATS
    starts = [int(asked.removeprefix("bytes=").partition("-")[0]) for asked in server.ranges]
    assert sorted(set(starts)) == list(range(0, len(CHATS), 50_000))
    assert any("retrying" in line for line in lines)


def test_a_server_without_ranges_is_read_from_the_start(server: HubServer, tmp_path: Path) -> None:
    server.ranges_taken = False
    assert fetch(tmp_path, f"{server.address}/files/a.jsonl")[0].read_bytes() == CHATS


def test_a_server_that_does_not_say_how_long_a_file_is_is_refused(server: HubServer, tmp_path: Path) -> None:
    server.lengths_sent = False
    with pytest.raises(DataError, match=r"does not say how long a\.jsonl is"):
        fetch(tmp_path, f"{server.address}/files/a.jsonl")


def test_a_busy_server_is_asked_again(server: HubServer, tmp_path: Path) -> None:
    server.failures = 3
    assert fetch(tmp_path, f"{server.address}/files/a.jsonl")[0].read_bytes() == CHATS


def test_a_missing_file_is_refused_without_its_query(server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not found \(404\) on http://127.*check the address") as caught:
        fetch(tmp_path, f"{server.address}/files/b.jsonl?who=private")
    assert "private" not in str(caught.value)


def test_a_denied_file_says_where_credentials_belong(server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"denied access \(403\); put a user and password into ~/.netrc"):
        fetch(tmp_path, f"{server.address}/secret/b.jsonl")


def test_credentials_come_from_netrc_and_are_not_logged(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password c2VjcmV0\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    lines: list[str] = []
    local_data(config(tmp_path, f"{server.address}/files/a.jsonl"), lines.append)
    assert server.tokens == {aiohttp.BasicAuth("me", "c2VjcmV0").encode()}
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != netrc]
    assert "c2VjcmV0" not in "".join(lines) + "".join(path.read_text() for path in written)


def test_no_server_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_PAUSE_SECONDS", 0.01)
    with pytest.raises(EnvironmentFault, match=r"http://127.0.0.1:9 cannot be reached .*qwen-job data fetch") as caught:
        fetch(tmp_path, "http://127.0.0.1:9/a.jsonl?who=private")
    assert "private" not in str(caught.value)


def test_a_run_refuses_a_file_that_changed_when_its_copy_is_gone(server: HubServer, tmp_path: Path) -> None:
    settings = config(tmp_path, f"{server.address}/files/a.jsonl")
    local_data(settings, print)
    server.files["a.jsonl"] = CHATS.replace(b"000001", b"changed")
    assert local_data(settings, print).data.train[0].path.read_bytes() == CHATS
    (tmp_path / "cache").rename(tmp_path / "lost")
    with pytest.raises(DataError, match=r"has changed since this run began: a\.jsonl is another file.*resume: changed"):
        local_data(settings, print)
    changed = config(tmp_path, f"{server.address}/files/a.jsonl", resume="changed")
    assert b"changed" in local_data(changed, print).data.train[0].path.read_bytes()


def test_an_unchanged_file_is_fetched_again_when_its_copy_is_gone(server: HubServer, tmp_path: Path) -> None:
    settings = config(tmp_path, f"{server.address}/files/a.jsonl")
    before = local_data(settings, print).data.train
    (tmp_path / "cache").rename(tmp_path / "lost")
    assert local_data(settings, print).data.train == before
    assert before[0].path.read_bytes() == CHATS


def test_a_missing_package_is_named_with_the_command(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    with pytest.raises(EnvironmentFault, match=r"needs the package aiohttp: pip install 'qwen-job\[remote\]'"):
        fetch(tmp_path, f"{server.address}/files/a.jsonl")


def test_a_disk_that_fills_up_is_named(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(addresses, "_append", full)
    with pytest.raises(EnvironmentFault, match=r"cannot be written .*No space left.* free space .*data\.cache_dir"):
        fetch(tmp_path, f"{server.address}/files/a.jsonl")


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(moto: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of an S3 server that has the bucket ``bucket``, and the variables that lead to it."""
    monkeypatch.setattr(download, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(addresses, "PIECE", 50_000)
    for name, value in (
        ("AWS_ENDPOINT_URL", moto),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "c2VjcmV0"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    for key in ("d/a.jsonl", "d/b.jsonl", "d/deep/c.jsonl", "other/x.jsonl"):
        client.put_object(Bucket="bucket", Key=key, Body=CHATS + key.encode())
    yield client
    for found in client.list_objects_v2(Bucket="bucket").get("Contents", []):
        client.delete_object(Bucket="bucket", Key=found["Key"])


@pytest.mark.usefixtures("bucket")
def test_an_object_of_a_bucket_comes_in_ranges(tmp_path: Path) -> None:
    assert [path.read_bytes() for path in fetch(tmp_path, "s3://bucket/d/a.jsonl")] == [CHATS + b"d/a.jsonl"]


@pytest.mark.usefixtures("bucket")
def test_a_pattern_names_several_objects(tmp_path: Path) -> None:
    found = fetch(tmp_path, "s3://bucket/d/*.jsonl")
    assert [path.name for path in found] == ["a.jsonl", "b.jsonl"]
    deep = fetch(tmp_path, "s3://bucket/**/c.jsonl")
    assert [path.read_bytes() for path in deep] == [CHATS + b"d/deep/c.jsonl"]


def test_a_changed_object_is_refused_by_a_run_that_lost_its_copy(bucket: Any, tmp_path: Path) -> None:
    settings = config(tmp_path, "s3://bucket/d/a.jsonl")
    local_data(settings, print)
    bucket.put_object(Bucket="bucket", Key="d/a.jsonl", Body=CHATS + b"another")
    assert local_data(settings, print).data.train[0].path.read_bytes() == CHATS + b"d/a.jsonl"
    (tmp_path / "cache").rename(tmp_path / "lost")
    with pytest.raises(DataError, match="has changed since this run began"):
        local_data(settings, print)


@pytest.mark.parametrize("name", ["s3://bucket/none.jsonl", "s3://nobucket/a.jsonl", "s3://bucket/none/*.jsonl"])
@pytest.mark.usefixtures("bucket")
def test_an_object_that_does_not_exist_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"not found \(404\)"):
        fetch(tmp_path, name)


@pytest.mark.usefixtures("bucket")
def test_a_folder_of_a_bucket_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not found \(404\)"):
        fetch(tmp_path, "s3://bucket/d")


@pytest.mark.usefixtures("bucket")
def test_no_credentials_say_which_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"denied access .*set AWS_ACCESS_KEY_ID"):
        fetch(tmp_path, "s3://bucket/d/a.jsonl")


@pytest.mark.usefixtures("bucket")
def test_a_key_is_written_nowhere(tmp_path: Path) -> None:
    lines: list[str] = []
    local_data(config(tmp_path, "s3://bucket/d/a.jsonl"), lines.append)
    assert "c2VjcmV0" not in "".join(lines)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"c2VjcmV0" in path.read_bytes()]


def test_a_record_holds_our_own_hash(server: HubServer, tmp_path: Path) -> None:
    fetched = fetch_data(Source(f"{server.address}/files/a.jsonl", None, tmp_path), print)
    assert fetched.record["files"][0]["sha256"] == hashlib.sha256(CHATS).hexdigest()


@pytest.fixture
def oss(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A bucket of OSS, and the variables that lead to it."""
    for name, value in (
        ("OSS_ENDPOINT", server.address),
        ("OSS_ACCESS_KEY_ID", "key"),
        ("OSS_ACCESS_KEY_SECRET", "c2VjcmV0"),
    ):
        monkeypatch.setenv(name, value)
    server.files = {"d/a.jsonl": CHATS, "d/b.jsonl": b"{}", "e/c.jsonl": b"{}"}
    return server


def test_an_object_of_oss_comes_in_ranges_with_the_key(oss: HubServer, tmp_path: Path) -> None:
    (path,) = fetch(tmp_path, "oss://bucket/d/a.jsonl")
    assert path.read_bytes() == CHATS
    assert len(oss.ranges) == -(-len(CHATS) // 50_000)
    assert all(token and token.startswith("OSS key:") for token in oss.tokens)


@pytest.mark.usefixtures("oss")
def test_a_pattern_names_several_objects_of_oss(tmp_path: Path) -> None:
    assert [path.name for path in fetch(tmp_path, "oss://bucket/d/*.jsonl")] == ["a.jsonl", "b.jsonl"]


@pytest.mark.usefixtures("oss")
@pytest.mark.parametrize("name", ["oss://bucket/none.jsonl", "oss://bucket/d", "oss://nobucket/a.jsonl"])
def test_an_object_that_oss_does_not_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"not found \(404\)"):
        fetch(tmp_path, name)


def test_a_broken_transfer_from_oss_resumes(oss: HubServer, tmp_path: Path) -> None:
    oss.break_once_after = 100_000
    assert fetch(tmp_path, "oss://bucket/d/a.jsonl")[0].read_bytes() == CHATS
