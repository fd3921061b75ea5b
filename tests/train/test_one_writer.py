"""Two jobs with one output: the second is refused with the first one's name, and the first is not disturbed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.train import tiny

pytestmark = pytest.mark.train


def test_a_second_job_in_a_run_s_folder_is_refused_before_it_writes(tmp_path: Path) -> None:
    train_yaml = tiny.write_run(tmp_path / "one", training__num_train_epochs=200.0, training__save_steps=5000)
    other = tiny.write_run(tmp_path / "other", training__num_train_epochs=200.0, training__learning_rate=0.5)
    folder = train_yaml.parent
    other.write_text(other.read_text().replace(f"output_dir: {other.parent}", f"output_dir: {folder}"))
    pods = {"KUBERNETES_SERVICE_HOST": "192.0.2.1"}
    first = tiny.start(train_yaml, **pods)
    tiny.wait_for_step(folder, 2, first)
    given = train_yaml.read_text()
    # As from another machine, whose processes nobody can see: by its pod's name, and after a look at the lease alone.
    code, output = tiny.run(other)
    assert code == 2, output
    assert output.count(f"trains in {folder}") == 1, output
    assert train_yaml.read_text() == given
    starts = tiny.metrics(folder, "start")
    assert len(starts) == 1
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 160, output
    assert not (folder / "launch" / "lease").exists()
