"""A pod that evaluates: the suite is checked first, the first node evaluates last, and codes are kept."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_job.node import evaluating, launcher

WORDS = ["--data", "{run}/held-out.jsonl", "--samples", "5", "--task", "gsm8k", "--task-folder", "/t", "--run-code"]
CHECK = ["evaluate", "--check", "--task", "gsm8k", "--task-folder", "/t", "--run-code"]


class Pod:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.calls = folder / "run", list[list[str]]()
        self.codes: dict[str, int] = {}
        self.run.mkdir()
        (folder / "train.yaml").write_text(yaml.safe_dump({"output_dir": str(self.run)}))
        monkeypatch.setattr(launcher, "main", self._train)
        monkeypatch.setattr(subprocess, "Popen", self._start)
        self.config = str(folder / "train.yaml")

    def _train(self, words: list[str]) -> int:
        self.calls.append(["train", *words[:2]])
        if not self.codes.get("train"):
            (self.run / "done.json").write_text("{}")
        return self.codes.get("train", 0)

    def _start(self, words: list[str]) -> Any:
        self.calls.append(words[3:])
        code = self.codes.get("check" if "--check" in words else "score", 0)
        pod = self

        class Process:
            def __enter__(self) -> Process:
                return self

            def __exit__(self, *_: object) -> None:
                assert pod.calls

            def wait(self) -> int:
                return code

        return Process()

    def main(self, rank: str = "0", words: list[str] = WORDS) -> int:
        own = [f"--word={word}" for word in words]
        return evaluating.main([*own, "--", "--node_rank", rank, "--", "--config", self.config])


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pod:
    return Pod(tmp_path, monkeypatch)


def test_the_first_pod_checks_trains_and_evaluates(pod: Pod) -> None:
    assert pod.main() == 0
    held_out = f"{pod.run}/held-out.jsonl"
    score = ["evaluate", str(pod.run), "--data", held_out, *WORDS[2:]]
    assert pod.calls == [CHECK, ["train", "--node_rank", "0"], score]


def test_another_pod_only_trains(pod: Pod) -> None:
    assert pod.main("1") == 0 and pod.calls == [["train", "--node_rank", "1"]]


@pytest.mark.parametrize(("failing", "calls"), [("check", 1), ("train", 2), ("score", 3)])
def test_what_fails_ends_the_pod_with_its_code(
    pod: Pod, failing: str, calls: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pod.codes[failing] = 9
    assert pod.main() == 9 and len(pod.calls) == calls
    assert ("the training is complete" in capsys.readouterr().err) == (failing == "score")


def test_a_signal_is_a_code_above_128(pod: Pod) -> None:
    pod.codes["score"] = -15
    assert pod.main() == 143


def test_without_a_suite_nothing_is_checked(pod: Pod) -> None:
    assert pod.main(words=["--data", "/d.json"]) == 0 and len(pod.calls) == 2
