"""The launcher's folder for states in memory: made where they fit, kept for the next attempt, removed at the end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from qwen_job.errors import EnvironmentFault
from qwen_job.node import keeper
from qwen_job.node.keeper import KEEP, open_memory
from qwen_job.run import states
from tests.run.test_states import write_state

HUGE = 2**60


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of Slurm or of a launcher."""
    for name in (KEEP, states.HOME, "SLURM_JOB_ID", "SLURMD_NODENAME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "shm").mkdir()


def command(folder: Path, steps: object = "auto", size: int | None = None, others: int | None = None) -> list[str]:
    values = {"training": {"memory_save_steps": steps},
              "plan": {"memory_save_bytes": size, "host_memory_bytes": others}}  # fmt: skip
    (folder / "train.yaml").write_text(yaml.safe_dump(values))
    return ["--config", str(folder / "train.yaml")]


@pytest.mark.parametrize(("limit", "fits"), [(2999, False), (3000, True), (None, True)])
def test_the_job_s_memory_limit_must_have_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], limit: int | None, fits: bool
) -> None:
    monkeypatch.setattr(keeper, "memory_limit", lambda: limit)
    memory = open_memory(tmp_path, command(tmp_path, "auto", 1000, 2000), 0, tmp_path / "shm")
    assert (memory is not None) == fits
    assert ("its memory limit is" in capfd.readouterr().err) == (not fits)
    if memory:
        memory.close(0)


def test_the_workers_get_the_folder_s_name_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    memory = open_memory(tmp_path, command(tmp_path, 5), 0, tmp_path / "shm")
    assert memory is not None and os.environ[states.HOME] == str(memory.home)
    assert memory.home.stat().st_mode & 0o777 == 0o700
    memory.close(0)
    assert not memory.home.exists() and states.HOME not in os.environ


@pytest.mark.parametrize(
    ("code", "variables", "stays"),
    [
        (0, {}, False),
        (3, {}, False),
        (160, {}, False),  # saved to disk
        (137, {}, True),
        (128, {"SLURM_JOB_ID": "7"}, False),  # the next attempt may get other nodes
        (128, {"SLURM_JOB_ID": "7", KEEP: "1"}, True),
    ],
)
def test_states_stay_for_an_attempt_that_may_start_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, variables: dict[str, str], stays: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    memory = open_memory(tmp_path, command(tmp_path), 0, tmp_path / "shm")
    assert memory is not None
    write_state(memory.home, 0, 4)
    memory.close(code)
    assert memory.home.exists() == stays
    again = open_memory(tmp_path, command(tmp_path), 0, tmp_path / "shm")
    assert again is not None and [state.step for state in states.states([again.home])] == ([4] if stays else [])
    again.close(0)


def test_what_does_not_fit_is_refused_by_its_field_or_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EnvironmentFault, match=r"train.memory_save_steps: 5: states in memory take .* has .* free"):
        open_memory(tmp_path, command(tmp_path, 5, HUGE), 0, tmp_path / "shm")
    assert open_memory(tmp_path, command(tmp_path, "auto", HUGE), 1, tmp_path / "shm") is None
    assert "node 1 keeps no state in memory: states in memory take" in capsys.readouterr().err
    with pytest.raises(EnvironmentFault, match="none does not exist"):
        open_memory(tmp_path, command(tmp_path, 5), 0, tmp_path / "none")
    assert list((tmp_path / "shm").iterdir()) == []


def test_a_folder_that_somebody_else_made_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = states.home_of(tmp_path, 0, tmp_path / "shm")
    (tmp_path / "elsewhere").mkdir()
    home.symlink_to(tmp_path / "elsewhere")
    assert open_memory(tmp_path, command(tmp_path), 0, tmp_path / "shm") is None
    assert "belongs to another process" in capsys.readouterr().err
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("steps", [0, None, "never", -1, []])
def test_without_states_in_memory_there_is_no_folder(tmp_path: Path, steps: object) -> None:
    assert open_memory(tmp_path, command(tmp_path, steps), 0, tmp_path / "shm") is None
    assert open_memory(None, [], 0, tmp_path / "shm") is None
    assert list((tmp_path / "shm").iterdir()) == []
