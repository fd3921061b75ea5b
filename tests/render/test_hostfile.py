"""The hostfile target: what DeepSpeed's own readers make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen_job.errors import JobError
from tests.jobs import bundle


def test_hosts_ranges_and_slots(tmp_path: Path) -> None:
    made = bundle(
        tmp_path, "hostfile", cluster={"nodes": 3, "gpus_per_node": 4}, hostfile={"hosts": ["gpu[01-02]", "x"]}
    )
    assert made.text == "gpu01 slots=4\ngpu02 slots=4\nx slots=4\n"
    assert set(made.files) == {"hostfile", ".deepspeed_env", "launch.sh"} and made.executable == {"launch.sh"}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({}, "hostfile.hosts: is empty: write the machines' names"),
        ({"hostfile": {"hosts": "a,b"}}, "hostfile.hosts: names 2 hosts, but cluster.nodes is 1; make them equal"),
        ({"hostfile": {"hosts": ["gpu1", "gpu1"]}, "cluster": {"nodes": 2}}, "names 1 hosts (gpu1 more than once"),
        ({"hostfile": {"hosts": ["slurm:7"]}}, "hostfile.hosts[0]: 'slurm:7' names no host itself"),
        (
            {"hostfile": {"hosts": "a"}, "env": {"A": "$x", "B": "ok", "C": "`"}},
            "env.C: holds '`', which .deepspeed_env",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as caught:
        bundle(tmp_path, "hostfile", **sections)
    assert message in str(caught.value)


@pytest.mark.train
def test_deepspeed_reads_ten_thousand_hosts(tmp_path: Path) -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    made = bundle(tmp_path, "hostfile", cluster={"nodes": 10_000}, hostfile={"hosts": "n[00001-10000]"})
    (tmp_path / "hostfile").write_text(made.text)
    hosts = fetch_hostfile(str(tmp_path / "hostfile"))
    assert len(hosts) == 10_000 and hosts["n00001"] == 2 and list(hosts)[-1] == "n10000"
