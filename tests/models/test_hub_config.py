"""A plan reads the config.json of a model that only its hub knows: once, never in a render, off by option."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qwen_job.cli import cli
from qwen_job.render.configs import job_document
from tests.jobs import FIVE_LINES, plan
from tests.models.test_fetch import BOTH, files, hub
from tests.support.hub_server import HubServer

__all__ = ["files", "hub"]


def planned(folder: Path, source: str, *words: str) -> Result:
    text = FIVE_LINES.replace(
        "model: Qwen/Qwen-1_8B-Chat", f"model: {{name: owner/tiny, source: {source}, cache_dir: {folder}/cache}}"
    )
    (folder / "job.yaml").write_text(text)
    return CliRunner().invoke(cli, ["plan", str(folder / "job.yaml"), *words], catch_exceptions=False)


@BOTH
def test_the_config_comes_once_and_nothing_else(hub: HubServer, tmp_path: Path, source: str) -> None:
    result = planned(tmp_path, source)
    assert result.exit_code == 0 and result.stdout.startswith("Fits"), result.output
    assert f"which came from {source}" in result.stderr
    assert [path.name for path in tmp_path.rglob("*.config/*") if path.is_file()] == ["config.json"]
    assert not list(tmp_path.rglob("*.safetensors"))
    asked = hub.requests
    assert planned(tmp_path, source).stdout == result.stdout and hub.requests == asked


@BOTH
def test_the_lines_that_it_names_make_a_render_choose_the_same(hub: HubServer, tmp_path: Path, source: str) -> None:
    result = planned(tmp_path, source)
    (line,) = [line for line in result.stderr.splitlines() if "render and submit read no hub" in line]
    deepspeed, train = (line.partition(f"{name}: ")[2].partition("}")[0] + "}" for name in ("deepspeed", "and train"))
    asked = hub.requests
    made = plan(
        tmp_path, "", f"model={{name: owner/tiny, source: {source}}}", f"deepspeed={deepspeed}", f"train={train}"
    )
    assert hub.requests == asked and made.shape is None and job_document(made)["model"]["name"] == "owner/tiny"
    assert f"zero_stage: {made.choice.zero_stage}," in deepspeed
    assert f"per_device_train_batch_size: {made.choice.micro_batch_size}," in train


@pytest.mark.parametrize("words", [["--no-hub"], []])
def test_no_hub_is_asked_where_the_user_says_so(
    hub: HubServer, tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not words:
        monkeypatch.setenv("QWEN_JOB_OFFLINE", "1")
    result = planned(tmp_path, "modelscope", *words)
    assert result.exit_code == 0 and result.stdout.startswith("Unknown: ") and hub.requests == 0
    assert ("QWEN_JOB_OFFLINE forbids downloads" in result.stderr) == (not words)


@pytest.mark.usefixtures("hub")
def test_a_hub_that_is_unreachable_leaves_the_plan_without_a_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:1")
    result = planned(tmp_path, "modelscope")
    assert result.exit_code == 0 and result.stdout.startswith("Unknown: ")
    assert "note: model.name: its config.json was not read from modelscope: " in result.stderr


@pytest.mark.parametrize(("source", "package"), [("modelscope", "modelscope_hub"), ("huggingface", "huggingface_hub")])
def test_without_the_library_and_offline_the_job_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("QWEN_JOB_OFFLINE", "1")
    result = planned(tmp_path, source)
    assert result.exit_code == 0 and f"was not read from {source}: " in result.stderr
