"""Downloads over real sockets: resumed, verified, once for all processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwen_job.chat.template import find_texts
from qwen_job.cli import main
from qwen_job.errors import EnvironmentFault, ModelError
from qwen_job.facts.choices import Source
from qwen_job.models.chat_files import chat_files, fetch_chat_files
from qwen_job.models.fetch import fetch_model, wanted
from qwen_job.models.random_init import load_config, write_random_model
from qwen_job.models.resolve import ensure_model
from qwen_job.remote import download
from qwen_job.remote.download import MARKER
from qwen_job.remote.hub import RemoteFile
from qwen_job.run.sections import ModelSpec
from qwen_job.storage import exclusive
from tests.support.hub_server import HubServer, serving

modelscope_hub = pytest.importorskip("modelscope_hub", reason="needs the extra hub")
huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs the extra hub")

WEIGHTS = "model.safetensors"
BOTH = pytest.mark.parametrize("source", ["modelscope", "huggingface"])
SMALL_CHUNKS = "import huggingface_hub.constants; huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 4096;"
FETCH = (
    "import sys, pathlib; from qwen_job.models import ensure_model; cache = pathlib.Path(sys.argv[1]);"
    "from qwen_job.run.sections import ModelSpec;"
    "print(ensure_model(ModelSpec(name='owner/tiny', source=sys.argv[2], cache_dir=cache), output_dir=cache));"
    "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("tiny")
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
    write_random_model({**load_config("qwen2-tiny"), **small}, ["hello"], folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {
        "pytorch_model.bin": b"pickle",
        "README.md": b"# model",
        "assets/logo.png": b"picture",
        "additional_chat_templates/README.md": b"# templates",
    }


@pytest.fixture
def hub(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HubServer]:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setattr(download, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0.01)
    monkeypatch.setattr("modelscope_hub._legacy_api.REPO_TREE_PAGE_RETRY_MAX_DELAY_SECONDS", 0.01)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "huggingface"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(home / "modelscope"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(home / "modelscope-cache"))
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serving(dict(files)) as server:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.address)
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def spec(cache: Path, source: Source = "modelscope", name: str = "owner/tiny") -> ModelSpec:
    return ModelSpec.read({"name": name, "source": source, "cache_dir": cache})


@BOTH
def test_a_model_comes_once_without_pickles_and_pictures(
    hub: HubServer, tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ensure_model(spec(tmp_path, source), output_dir=tmp_path)
    present = {path.name for path in folder.iterdir()} - {MARKER}
    assert present == set(hub.files) - {"pytorch_model.bin", "README.md", *(name for name in hub.files if "/" in name)}
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    asked = dict(hub.asked)
    monkeypatch.setenv("QWEN_JOB_OFFLINE", "1")
    assert fetch_model(spec(tmp_path, source)) == folder
    assert hub.asked == asked


@BOTH
@pytest.mark.parametrize("fetch", [fetch_model, fetch_chat_files])
def test_named_chat_templates_come_with_their_folder(
    hub: HubServer, tmp_path: Path, source: Source, fetch: Callable[[ModelSpec], Path]
) -> None:
    hub.files |= {"chat_template.jinja": b"one", "additional_chat_templates/tool_use.jinja": b"two"}
    folder = fetch(spec(tmp_path, source))
    found = find_texts(folder)
    assert found is not None and found.texts == {"default": "one", "tool_use": "two"}
    assert [path.name for path in (folder / "additional_chat_templates").iterdir()] == ["tool_use.jinja"]
    asked = dict(hub.asked)
    assert fetch(spec(tmp_path, source)) == folder and hub.asked == asked
    (folder / "additional_chat_templates" / "tool_use.jinja").unlink()
    assert fetch(spec(tmp_path, source)) == folder and find_texts(folder) == found


def test_a_record_that_lists_a_file_outside_is_no_sound_copy(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("../secret", "additional_chat_templates/../../secret", "/etc/passwd", "a//b", ""):
        (folder / MARKER).write_text(json.dumps({"files": {name: {"size": 1}}}))
        assert "not a plain file name" in download.damaged(folder)


def test_a_transfer_that_breaks_off_goes_on_where_it_was(hub: HubServer, tmp_path: Path) -> None:
    hub.cut_after[WEIGHTS] = step = len(hub.files[WEIGHTS]) // 3 + 1
    folder = fetch_model(spec(tmp_path))
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert hub.ranges == [f"bytes={step}-", f"bytes={2 * step}-"]


@BOTH
def test_a_killed_download_resumes_in_the_next_process(hub: HubServer, tmp_path: Path, source: Source) -> None:
    hub.stall_after[WEIGHTS] = 100_000
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}
    with subprocess.Popen([sys.executable, "-c", SMALL_CHUNKS + FETCH, tmp_path, source], env=environment) as process:
        assert hub.stalled.wait(60)
        time.sleep(0.5)  # until it wrote what was sent
        process.kill()
    hub.cut.set()
    folder = fetch_model(spec(tmp_path, source))
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert [int(asked.strip("bytes=-")) > 50_000 for asked in hub.ranges] == [True]


def test_a_file_of_the_right_size_with_wrong_bytes_is_replaced(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "modelscope" / "owner--tiny@master"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(bytes(len(hub.files["config.json"])))
    fetch_model(spec(tmp_path))
    assert (folder / "config.json").read_bytes() == hub.files["config.json"]


@BOTH
@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_wrong_bytes_are_fetched_again(hub: HubServer, tmp_path: Path, source: Source, name: str) -> None:
    hub.wrong[name] = 2
    assert (fetch_model(spec(tmp_path, source)) / name).read_bytes() == hub.files[name]
    assert hub.asked[name] == 3


def test_bytes_that_stay_wrong_are_refused_and_not_kept(hub: HubServer, tmp_path: Path) -> None:
    hub.wrong[WEIGHTS] = 99
    with pytest.raises(ModelError, match=f"{WEIGHTS}: .* other bytes than the hash"):
        fetch_model(spec(tmp_path))
    assert not list(tmp_path.rglob(WEIGHTS)) and not list(tmp_path.rglob(MARKER))


@BOTH
def test_a_busy_hub_is_asked_again(
    hub: HubServer, tmp_path: Path, source: Source, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.failures = 2
    lines: list[str] = []
    fetch_model(spec(tmp_path, source), progress=lines.append)
    assert sum("503" in line or "ServerError" in line for line in lines) >= 2
    assert capfd.readouterr().err == ""


@BOTH
def test_progress_comes_in_lines_and_no_bar_is_drawn(
    hub: HubServer, tmp_path: Path, source: Source, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "REPORT_SECONDS", 0.05)
    hub.stall_after[WEIGHTS] = 100_000
    threading.Timer(0.5, hub.cut.set).start()
    lines: list[str] = []
    fetch_model(spec(tmp_path, source), progress=lines.append)
    assert any(line.startswith("downloading owner/tiny: ") for line in lines)
    assert any(line.endswith(" GB downloaded") for line in lines)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


@pytest.mark.usefixtures("hub")
def test_no_hub_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(EnvironmentFault, match=r"cannot be reached .*qwen-job model fetch"):
        fetch_model(spec(tmp_path))


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owner/other", r"not found \(404\)"),
        ("owner/secret", "MODELSCOPE_API_TOKEN"),
        ("tiny", "not a hub ID"),
        ("./tiny", "source local"),
    ],
)
def test_a_model_that_cannot_be_had_is_final(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        fetch_model(spec(tmp_path, name=name))


def test_offline_without_a_copy_is_refused(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_JOB_OFFLINE", "1")
    with pytest.raises(EnvironmentFault, match="QWEN_JOB_OFFLINE forbids"):
        fetch_model(spec(tmp_path))
    assert not hub.asked


def test_the_token_stays_with_the_hub(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch_model(spec(tmp_path, "huggingface"))
    assert hub.tokens == {"Bearer hf_secret", None, "cdn None"}


@pytest.mark.usefixtures("hub")
def test_no_room_is_said_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        f_bavail, f_frsize = 1, 512

    monkeypatch.setattr(download.os, "statvfs", lambda _: Full)
    with pytest.raises(EnvironmentFault, match="free space or fix rights, or choose"):
        fetch_model(spec(tmp_path))
    assert not list(tmp_path.rglob("*.part"))


def test_many_processes_download_once(hub: HubServer, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FETCH, str(tmp_path), "modelscope"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0] * 4
    assert len(answers) == 1
    assert set(hub.asked.values()) == {1}


@pytest.mark.usefixtures("hub")
def test_those_who_wait_are_told_for_whom(tmp_path: Path) -> None:
    lines: list[str] = []
    with exclusive(tmp_path / "models" / "modelscope" / "owner--tiny@master.lock"):
        thread = threading.Thread(target=fetch_model, args=[spec(tmp_path)], kwargs={"progress": lines.append})
        thread.start()
        while not lines:
            time.sleep(0.01)
    thread.join()
    assert lines[0].startswith("waiting for ") and lines[0].endswith("which is preparing owner--tiny@master")


@BOTH
@pytest.mark.parametrize("fetch", [fetch_model, fetch_chat_files])
@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "a/../../tokenizer.json"])
def test_a_listing_that_leaves_the_folder_is_refused(
    hub: HubServer, tmp_path: Path, source: Source, fetch: Callable[[ModelSpec], Path], path: str
) -> None:
    hub.files[path] = b"{}"
    with pytest.raises(ModelError, match="outside the model's folder"):
        fetch(spec(tmp_path, source))
    assert not hub.asked


def test_pickles_come_only_where_nothing_else_is() -> None:
    names = ["pytorch_model.bin", "config.json", "model.onnx"]
    chosen = wanted([RemoteFile(name, 1, None, "") for name in names])
    assert [file.path for file in chosen] == ["pytorch_model.bin", "config.json"]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("extra", [[], ["--source", "local"]])
def test_a_local_folder_is_used_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], extra: list[str]
) -> None:
    fetched = fetch_model(spec(tmp_path / "cache"))
    monkeypatch.chdir(fetched.parent)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    name = fetched.name if extra else f"./{fetched.name}"
    for arguments, code in (([], 0), (["--revision", "main"], 2)):
        with pytest.raises(SystemExit) as end:
            main(["model", "fetch", name, "--cache", str(tmp_path / "other"), *extra, *arguments])
        assert end.value.code == code
    out, err = capsys.readouterr()
    assert out == f"{fetched}\n" and "--revision: does not apply to a local folder" in err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("link", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_listing_that_continues_elsewhere_is_not_followed(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    monkeypatch.setattr(HubServer, "address", property(lambda _: link.rpartition("/")[0]))
    with pytest.raises(EnvironmentFault, match="protocol"):
        fetch_model(spec(tmp_path, "huggingface"))
    assert not hub.asked


@pytest.mark.parametrize("answer", ["[1]", "[" * 5000, '{"Data": []}', '{"Data": {"Files": [{}]}}', "7"])
def test_a_listing_that_is_none_is_no_internal_error(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    hub.listing = answer.encode()
    with pytest.raises((EnvironmentFault, ModelError), match=r"not a list of files|no files"):
        fetch_model(spec(tmp_path))


def _spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    match how:
        case "missing":
            path.unlink()
        case "cut":
            path.write_bytes(data[:-100])
        case "empty":
            path.write_bytes(b"")
        case "longer":
            path.write_bytes(data + b"x")
        case "changed":
            path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


@BOTH
@pytest.mark.parametrize(
    ("how", "name"), [("missing", WEIGHTS), ("cut", "config.json"), ("empty", "tokenizer.json"), ("longer", WEIGHTS)]
)
def test_a_damaged_cache_is_repaired_by_fetching_what_is_wrong(
    hub: HubServer, tmp_path: Path, source: Source, how: str, name: str
) -> None:
    folder = ensure_model(spec(tmp_path, source), output_dir=tmp_path)
    hub.asked.clear()
    _spoil(folder / name, how)
    lines: list[str] = []
    assert ensure_model(spec(tmp_path, source), output_dir=tmp_path, progress=lines.append) == folder
    assert (folder / name).read_bytes() == hub.files[name]
    assert dict(hub.asked) == {name: 1}
    assert any(line.startswith(f"{folder.name}: {name} ") for line in lines)


@BOTH
@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "vocab.json"])
def test_other_bytes_of_the_right_size_are_found_by_hashes_where_asked(
    hub: HubServer, tmp_path: Path, source: Source, name: str
) -> None:
    hub.files["vocab.json"] = b"{}"
    folder = fetch_model(spec(tmp_path, source))
    hub.asked.clear()
    assert fetch_model(spec(tmp_path, source), verify=True) == folder and not hub.asked
    _spoil(folder / name, "changed")
    assert fetch_model(spec(tmp_path, source)) == folder and not hub.asked
    assert fetch_model(spec(tmp_path, source), verify=True) == folder
    assert (folder / name).read_bytes() == hub.files[name] and dict(hub.asked) == {name: 1}


def test_a_copy_that_cannot_be_used_is_repaired_without_asking(hub: HubServer, tmp_path: Path) -> None:
    folder = ensure_model(spec(tmp_path), output_dir=tmp_path)
    for name in (WEIGHTS, "config.json"):
        _spoil(folder / name, "changed")
    assert ensure_model(spec(tmp_path), output_dir=tmp_path) == folder
    assert hub.asked[WEIGHTS] == hub.asked["config.json"] == 2 and hub.asked["tokenizer.json"] == 1


@pytest.mark.usefixtures("hub")
def test_a_damaged_copy_without_a_network_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch_model(spec(tmp_path))
    _spoil(folder / WEIGHTS, "cut")
    monkeypatch.setenv("QWEN_JOB_OFFLINE", "1")
    with pytest.raises(EnvironmentFault, match=f"damaged .*{WEIGHTS} has .* bytes.*model fetch owner/tiny"):
        fetch_model(spec(tmp_path))


@pytest.mark.parametrize("record", ["", "{}", '{"files": {"../x": {"size": 1}}}', '{"files": {"config.json": 3}}'])
def test_a_damaged_record_is_written_anew(hub: HubServer, tmp_path: Path, record: str) -> None:
    folder = fetch_model(spec(tmp_path))
    whole = (folder / MARKER).read_text()
    (folder / MARKER).write_text(record)
    hub.asked.clear()
    assert fetch_model(spec(tmp_path)) == folder and not hub.asked
    assert (folder / MARKER).read_text() == whole


@BOTH
def test_a_quantized_model_is_refused_before_its_weights_come(hub: HubServer, tmp_path: Path, source: Source) -> None:
    config = {**json.loads(hub.files["config.json"]), "quantization_config": {"quant_method": "awq"}}
    hub.files["config.json"] = json.dumps(config).encode()
    with pytest.raises(ModelError, match=r"is quantized .*awq.*full-precision"):
        ensure_model(spec(tmp_path, source), output_dir=tmp_path)
    assert dict(hub.asked) == {"config.json": 1}


@pytest.mark.usefixtures("hub")
def test_a_trailing_slash_is_the_same_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for words in (["owner/tiny/"], ["owner/tiny", "--verify"]):
        with pytest.raises(SystemExit) as end:
            main(["model", "fetch", *words, "--cache", str(tmp_path)])
        assert end.value.code == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == f"{tmp_path}/models/modelscope/owner--tiny@master\n"


def test_the_marker_tells_what_came(hub: HubServer, tmp_path: Path) -> None:
    marker = json.loads((fetch_model(spec(tmp_path)) / MARKER).read_text())
    assert (marker["model"], marker["revision"], marker["endpoint"]) == ("owner/tiny", "master", hub.address)
    assert len(marker["files"][WEIGHTS]["sha256"]) == 64


def _fill_own_cache(hub: HubServer, source: Source) -> Path:
    """Download the model as a user does, without qwen-job."""
    if source == "modelscope":
        folder = modelscope_hub.HubApi(modelscope_hub.HubConfig()).download_repo("owner/tiny", "model")
    else:
        folder = huggingface_hub.snapshot_download("owner/tiny", endpoint=hub.address)
    hub.asked.clear()
    return Path(folder)


@BOTH
def test_what_the_users_own_cache_holds_is_not_downloaded(hub: HubServer, tmp_path: Path, source: Source) -> None:
    own = _fill_own_cache(hub, source)
    folder = fetch_model(spec(tmp_path, source))
    assert not hub.asked
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert (folder / WEIGHTS).samefile(own / WEIGHTS) and not (folder / WEIGHTS).is_symlink()


@BOTH
def test_damaged_files_of_the_users_own_cache_are_downloaded(hub: HubServer, tmp_path: Path, source: Source) -> None:
    own = _fill_own_cache(hub, source)
    _spoil(own / WEIGHTS, "changed")
    folder = fetch_model(spec(tmp_path, source))
    assert dict(hub.asked) == {WEIGHTS: 1}
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS] != (own / WEIGHTS).read_bytes()


@BOTH
def test_the_users_own_cache_is_used_in_place_without_a_network(
    hub: HubServer, tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = _fill_own_cache(hub, source)
    monkeypatch.setenv("QWEN_JOB_OFFLINE", "1")
    lines: list[str] = []
    assert ensure_model(spec(tmp_path, source), output_dir=tmp_path, progress=lines.append) == own
    assert [str(own) in line for line in lines] == [True]
    _spoil(own / WEIGHTS, "cut")
    with pytest.raises(ModelError, match=WEIGHTS):
        ensure_model(spec(tmp_path, source), output_dir=tmp_path)


def test_a_revision_is_not_taken_from_the_copy_of_another(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = _fill_own_cache(hub, "modelscope")
    old_layout = own.parents[1].with_name("owner") / "tiny"
    old_layout.parent.mkdir()
    own.rename(old_layout)
    monkeypatch.setenv("QWEN_JOB_OFFLINE", "1")
    assert fetch_model(spec(tmp_path)) == old_layout
    with pytest.raises(EnvironmentFault, match="not cached"):
        fetch_model(ModelSpec(name="owner/tiny", source="modelscope", revision="v1.0", cache_dir=tmp_path))


@BOTH
@pytest.mark.usefixtures("hub")
def test_without_the_library_the_command_to_install_it_is_named(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch_model(spec(tmp_path, source))
    for name in ("modelscope_hub", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    assert fetch_model(spec(tmp_path, source)) == folder
    with pytest.raises(EnvironmentFault, match=r"pip install 'qwen-job\[hub\]'"):
        fetch_model(spec(tmp_path / "other", source))


@BOTH
def test_a_token_is_written_nowhere(
    hub: HubServer, tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_secret-8f1c"
    monkeypatch.setenv("HF_TOKEN" if source == "huggingface" else "MODELSCOPE_API_TOKEN", secret)
    fetch_model(spec(tmp_path, source))
    assert f"Bearer {secret}" in hub.tokens
    written = [*tmp_path.rglob("*"), *Path(os.environ["MODELSCOPE_HOME"]).parent.rglob("*")]
    assert not [path for path in written if path.is_file() and secret.encode() in path.read_bytes()]


@BOTH
def test_data_needs_no_weights(hub: HubServer, tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files |= {"chat_template.jinja": b"{{ messages }}"}
    folder = fetch_chat_files(spec(tmp_path, source))
    found = {path.name for path in folder.iterdir()} - {MARKER}
    assert {"tokenizer.json", "chat_template.jinja"} <= found <= set(hub.files)
    assert not hub.asked[WEIGHTS]
    monkeypatch.setenv("QWEN_JOB_OFFLINE", "1")
    assert fetch_chat_files(spec(tmp_path, source)) == folder


def test_a_complete_copy_serves_data_too(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fetch_model(spec(tmp_path))
    asked = dict(hub.asked)
    assert fetch_chat_files(spec(tmp_path)) == whole
    assert hub.asked == asked
    monkeypatch.setenv("QWEN_JOB_CACHE", str(tmp_path))
    assert chat_files("owner/tiny") == whole
    monkeypatch.setenv("QWEN_JOB_OFFLINE", "1")
    with pytest.raises(EnvironmentFault, match="is not cached"):
        fetch_chat_files(spec(tmp_path / "other"))


def test_what_has_no_tokenizer_is_refused(hub: HubServer, tmp_path: Path) -> None:
    del hub.files["tokenizer.json"]
    with pytest.raises(ModelError, match=r"owner/tiny: has no tokenizer\.json$"):
        fetch_chat_files(spec(tmp_path))
    with pytest.raises(ModelError, match=r"tiny: is no folder, and 'tiny' is not a hub ID"):
        chat_files("tiny")
    assert chat_files(str(tmp_path)) == tmp_path and chat_files("./no") == Path("no")
