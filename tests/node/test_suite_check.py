"""A pod of a job with a suite: the suite is checked on the first node before the training."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from qwen_job.node import launcher, suite_check

WORDS = ["--data", "{run}/held-out.jsonl", "--samples", "5", "--task", "gsm8k", "--task-folder", "/t", "--run-code"]
CHECK = ["evaluate", "--check", "--task", "gsm8k", "--task-folder", "/t", "--run-code"]


class Pod:
    """``codes`` are those that the check and the training end with, ``calls`` what was run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.codes = list[list[str]](), dict[str, int]()
        monkeypatch.setattr(launcher, "main", self._train)
        monkeypatch.setattr(subprocess, "Popen", self._start)

    def _train(self, words: list[str]) -> int:
        self.calls.append(["train", *words[:2]])
        return self.codes.get("train", 0)

    def _start(self, words: list[str]) -> Any:
        self.calls.append(words[3:])
        pod = self

        class Process:
            def __enter__(self) -> Process:
                return self

            def __exit__(self, *_: object) -> None:
                assert pod.calls

            def wait(self) -> int:
                return pod.codes.get("check", 0)

        return Process()

    def main(self, rank: str = "0") -> int:
        own = [f"--word={word}" for word in WORDS]
        return suite_check.main([*own, "--", "--node_rank", rank, "--", "--config", "/etc/qwen-job/train.yaml"])


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch) -> Pod:
    return Pod(monkeypatch)


def test_the_first_pod_checks_and_trains(pod: Pod) -> None:
    assert pod.main() == 0
    assert pod.calls == [CHECK, ["train", "--node_rank", "0"]]


def test_another_pod_only_trains(pod: Pod) -> None:
    assert pod.main("1") == 0 and pod.calls == [["train", "--node_rank", "1"]]


@pytest.mark.parametrize(("failing", "calls"), [("check", 1), ("train", 2)])
def test_what_fails_ends_the_pod_with_its_code(pod: Pod, failing: str, calls: int) -> None:
    pod.codes[failing] = 9
    assert pod.main() == 9 and len(pod.calls) == calls


def test_a_signal_is_a_code_above_128(pod: Pod) -> None:
    pod.codes["check"] = -15
    assert pod.main() == 143
