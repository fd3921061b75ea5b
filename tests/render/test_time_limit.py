"""A target's time limit stays with that target: nothing else carries it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs import bundle


@pytest.mark.parametrize(
    ("target", "sections"),
    [("local", {"cluster": {"nodes": 1}}), ("hostfile", {"hostfile": {"hosts": ["n1"]}})],
)
def test_a_site_profiles_slurm_time_does_not_stop_other_targets(
    tmp_path: Path, target: str, sections: dict[str, object]
) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    limited = bundle(tmp_path / "with", target, output="/shared/run", slurm={"time": "24h"}, **sections).files
    free = bundle(tmp_path / "without", target, output="/shared/run", **sections).files
    # job.yaml, which travels along, tells what was written; nothing that is run does.
    for name, text in limited.items():
        assert text.replace('slurm:\n  time: "24:00:00"\n', "") == free[name]
