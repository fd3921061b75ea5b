"""Where a lost node's launcher is started again (a new pod, the next host), the others wait: scripted launchers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.node.test_coordinator import Job, Launcher


@pytest.fixture
def job() -> Iterator[Job]:
    made = Job(3, most=2, rejoin=20)
    yield made
    for launcher in made.launchers:
        launcher.leave()
    made.coordinator.finish()


def come_back(job: Job, node: int, generation: int) -> Launcher:
    """Be the successor of a node's launcher, which first believes that the job has just begun."""
    launcher = Launcher(job.port)
    launcher.tell("hello", job="job-1", node=node, nodes=job.nodes, host=f"new{node}")
    launcher.tell("ready", G=0, port=0)
    assert launcher.hear() == {"what": "prepare", "G": generation, "pause": 0.0}
    job.launchers.insert(node, launcher)
    return launcher


def end_attempt(launchers: list[Launcher], generation: int) -> list[dict[str, Any]]:
    """Hear that the attempt is over, and say that no rank is left; return what each hears then."""
    assert {launcher.hear()["what"] for launcher in launchers} == {"over"}
    for launcher in launchers:
        launcher.tell("ended", G=generation, codes=[], why="", leaving=False)
    return [launcher.hear() for launcher in launchers]


def test_a_node_lost_while_training_is_waited_for(job: Job) -> None:
    launch = job.start()["launch"]
    job.launchers.pop(1).leave()
    assert {message["what"] for message in end_attempt(job.launchers, 0)} == {"prepare"}
    assert "the launcher of node 1 (host1) is gone: restarting all ranks in place (1 of 2" in job.said[-1]
    assert job.said[-1].endswith("; waiting up to 20 s for node 1 to come back")
    come_back(job, 1, 1)
    again = job.start(1)
    assert (again["what"], again["G"], again["launch"]) == ("start", 1, launch)


def test_the_others_may_be_ready_before_it_is_back(job: Job) -> None:
    job.start()
    job.launchers.pop(2).leave()
    end_attempt(job.launchers, 0)
    for node, launcher in enumerate(job.launchers):
        launcher.tell("ready", G=1, port=0 if node else 29601)
    come_back(job, 2, 1).tell("ready", G=1, port=0)
    assert {message["what"] for message in job.hear()} == {"start"}


def test_a_node_lost_while_all_prepare_is_waited_for(job: Job) -> None:
    job.start()
    job.fail(0, 1, -9)
    job.launchers[2].tell("ready", G=1, port=0)
    job.launchers.pop(2).leave()
    come_back(job, 2, 1)
    assert job.start(1)["what"] == "start"


def test_a_node_that_is_never_well_comes_to_an_end(job: Job) -> None:
    job.start()
    job.launchers.pop(2).leave()
    end_attempt(job.launchers, 0)
    come_back(job, 2, 1)
    job.launchers.pop(2).leave()  # the second restart in a row
    come_back(job, 2, 1)
    job.launchers.pop(2).leave()
    end = job.hear()[0]
    assert (end["what"], end["code"]) == ("end", 128)
    assert end["why"].endswith("2 restarts in place (retry.in_place) reached no newer checkpoint")


def test_a_node_that_fails_its_check_ends_alone(job: Job) -> None:
    job.start()
    job.fail(0, 1, -9)
    sick = job.launchers.pop(1)
    sick.tell("fault", G=1, why="host1: nvidia-smi failed")
    assert sick.hear() == {"what": "end", "code": 128, "why": ""}
    sick.leave()
    come_back(job, 1, 1)
    assert job.start(1)["what"] == "start"


def test_a_node_that_is_drained_ends_alone(job: Job) -> None:
    """All ranks have saved and ended with 160, since one node was asked to stop."""
    job.start()
    job.launchers[2].tell("over", G=0, code=160, why="stopped", grace=30.0)
    job.hear()
    for node, launcher in enumerate(job.launchers):
        launcher.tell("ended", G=0, codes=[160], why="", leaving=node == 2)
    drained = job.launchers.pop(2)
    assert drained.hear() == {"what": "end", "code": 128, "why": ""}
    assert {message["what"] for message in job.hear()} == {"prepare"}
    assert job.said[-1].startswith("node 2 (host2) was asked to stop: restarting all ranks in place")
    drained.leave()
    come_back(job, 2, 1)
    assert job.start(1)["what"] == "start"


@pytest.mark.parametrize("leaving", [{0}, {0, 1, 2}])
def test_a_job_that_is_asked_to_stop_as_a_whole_ends(job: Job, leaving: set[int]) -> None:
    job.start()
    job.launchers[0].tell("over", G=0, code=160, why="stopped", grace=30.0)
    job.hear()
    for node, launcher in enumerate(job.launchers):
        launcher.tell("ended", G=0, codes=[160], why="", leaving=node in leaving)
    assert {message["what"] for message in job.hear()} == {"end"}


def test_a_final_code_of_a_lost_node_ends_the_job(job: Job) -> None:
    job.start()
    job.launchers[2].tell("over", G=0, code=4, why="wrong data", grace=0.0)
    job.hear()
    job.launchers[2].tell("ended", G=0, codes=[4], why="", leaving=False)
    job.launchers.pop(2).leave()
    for launcher in job.launchers:
        launcher.tell("ended", G=0, codes=[], why="", leaving=False)
    assert {message["what"] for message in job.hear()} == {"end"}


def test_a_successor_comes_before_the_end_of_its_predecessor_is_noticed(job: Job) -> None:
    job.start()
    old = job.launchers.pop(1)
    new = Launcher(job.port)
    new.tell("hello", job="job-1", node=1, nodes=3, host="new1")
    assert {message["what"] for message in end_attempt(job.launchers, 0)} == {"prepare"}
    assert new.hear()["what"] == "prepare"
    job.launchers.insert(1, new)
    assert old.hear() == {"what": "refused", "why": "another launcher has become node 1"}
    old.leave()
    assert job.start(1)["what"] == "start"


def test_a_node_that_does_not_come_back_is_named() -> None:
    job = Job(2, most=2, rejoin=0.1)
    job.start()
    job.launchers.pop(1).leave()
    (prepare,) = end_attempt(job.launchers, 0)
    (end,) = job.hear()
    assert (prepare["what"], end["what"], end["code"]) == ("prepare", "end", 162)
    assert "node 1 did not come back within 0 s" in end["why"]
