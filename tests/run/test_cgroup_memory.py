"""The memory limit of a process's control group, as both versions of the kernel's interface write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_job.run.cgroup_memory import memory_limit


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/job/step\n", {"job/memory.max": "400\n", "job/step/memory.max": "max\n"}, 400),
        ("0::/job/step\n", {"job/memory.max": "400\n", "job/step/memory.max": "300\n"}, 300),
        ("0::/\n", {"memory.max": "500\n"}, 500),
        ("4:memory:/slurm/job\n2:cpu:/\n", {"memory/slurm/job/memory.limit_in_bytes": "700\n"}, 700),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("0::/job\n", {}, None),
        ("nonsense\n", {}, None),
    ],
)
def test_the_lowest_limit_counts(tmp_path: Path, own: str, files: dict[str, str], limit: int | None) -> None:
    (tmp_path / "own").write_text(own)
    for path, text in files.items():
        write(tmp_path / "root", path, text)
    assert memory_limit(tmp_path / "root", tmp_path / "own") == limit


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert memory_limit(tmp_path, tmp_path / "missing") is None
