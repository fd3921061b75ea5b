"""A run on data by name: trained over a hub here, resumed without it, and refused when the revision is another."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_job.cli import main
from tests.support.hub_server import COMMIT, serving
from tests.train import tiny

pytestmark = [pytest.mark.train, pytest.mark.slow]

SHORT = {"world_size": 1, "training__max_steps": 4, "training__save_steps": 2, "training__warmup_ratio": 0.0}


def rows(folder: Path, count: int) -> bytes:
    """Return conversations in the reference's format."""
    return tiny.conversations(folder / "rows.json", count).read_bytes()


def test_a_run_trains_on_a_name_and_resumes_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    named = {"data__train": [{"source": "hf:owner/chats", "weight": 1.0}]}
    files = {"train-1.json": rows(tmp_path, 40), "train-2.json": rows(tmp_path, 9), "test.json": rows(tmp_path, 3)}
    with serving(files) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        train_yaml = tiny.write_run(tmp_path / "run", 0, **{**SHORT, **named, "training__max_steps": 2})
        code, output = tiny.run(train_yaml, 1, HF_HUB_OFFLINE="0")
        assert code == 0, output
        assert f"data.train[0]: hf:owner/chats: 2 files, 0.0 MB at commit {COMMIT}" in output
        hub.push({"train.json": rows(tmp_path, 20)})

    # The hub is gone, and HF_HUB_OFFLINE is set.
    train_yaml = tiny.write_run(tmp_path / "run", 0, **{**SHORT, **named, "resume": "extend"})
    code, output = tiny.run(train_yaml, 1)
    assert code == 0 and "resuming from step-2" in output, output
    assert [line["step"] for line in tiny.metrics(tmp_path / "run", "step")] == [1, 2, 3, 4]
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert re.search(rf"train: hf:owner/chats at {COMMIT}: train-1.json \| git [0-9a-f]{{40}} \| 1.0", card)
    assert "datasets:\n- owner/chats\n" in card

    with pytest.raises(SystemExit) as end:  # the rows of the run, from its cache
        main(["evaluate", str(tmp_path / "run"), "--data", "hf:owner/chats", "--samples", "0", "--json"])
    assert end.value.code == 0
    measured = json.loads(capsys.readouterr().out)
    assert (measured["data"], measured["conversations"]) == ("hf:owner/chats", 49)


def test_ranks_train_on_what_was_prepared_and_refuse_a_revision_with_other_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with serving({"train.json": rows(tmp_path, 40)}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        changes = {**SHORT, "world_size": 2, "data__train": [{"source": "hf:owner/chats", "weight": 1.0}]}
        train_yaml = tiny.write_run(tmp_path / "run", 0, **changes)
        command = [sys.executable, "-m", "qwen_job.node.prepare_job", "--config", str(train_yaml)]
        subprocess.run(command, env=tiny.environment(HF_HUB_OFFLINE="0"), check=True)
        code, output = tiny.run(train_yaml, 2)  # offline
        assert code == 0, output
        (tmp_path / "run" / "done.json").unlink()
        commit = hub.push({"train.json": rows(tmp_path, 30)})
        changes["data__train"] = [{"source": "hf:owner/chats", "weight": 1.0, "revision": commit}]
        code, output = tiny.run(tiny.write_run(tmp_path / "run", 0, **changes), 2, HF_HUB_OFFLINE="0")
    assert code == 3 and "data.train: the rows to train on differ" in output, output
