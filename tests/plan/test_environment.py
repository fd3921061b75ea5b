"""Environment presets by device and network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.jobs import pinned_plan


def env(folder: Path, **sections: Any) -> dict[str, str]:
    return pinned_plan(folder, **sections).env


def test_one_node_needs_no_network(tmp_path: Path) -> None:
    assert env(tmp_path)["NCCL_DEBUG"] == "WARN" and "NCCL_SOCKET_IFNAME" not in env(tmp_path)


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ({"interconnect": "ethernet"}, {"NCCL_IB_DISABLE": "1"}),
        ({"socket_interface": "^docker,lo"}, {"NCCL_SOCKET_IFNAME": "^docker,lo", "GLOO_SOCKET_IFNAME": "^docker,lo"}),
        ({"interconnect": "efa"}, {"FI_PROVIDER": "efa"}),
        ({"socket_interface": "eth0"}, {"NCCL_SOCKET_IFNAME": "eth0", "GLOO_SOCKET_IFNAME": "eth0"}),
        ({"ib_hca": "=mlx5_0"}, {"NCCL_IB_HCA": "=mlx5_0"}),
        ({"cpus_per_gpu": 12}, {"OMP_NUM_THREADS": "12"}),
    ],
)
def test_networks_bring_their_presets(tmp_path: Path, cluster: dict[str, Any], expected: dict[str, str]) -> None:
    assert expected.items() <= env(tmp_path, cluster={"nodes": 2, **cluster}).items()


def test_without_an_interface_nccl_keeps_its_own_order(tmp_path: Path) -> None:
    made = env(tmp_path, cluster={"nodes": 2, "interconnect": "infiniband"})
    assert not {"NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_IB_DISABLE"} & made.keys()


def test_a_cpu_knows_nothing_of_nccl(tmp_path: Path) -> None:
    assert not [name for name in env(tmp_path, cluster={"gpu": "CPU"}) if "NCCL" in name or "CUDA" in name]


def test_the_job_s_own_values_win_and_names_are_sorted(tmp_path: Path) -> None:
    made = env(tmp_path, env={"NCCL_DEBUG": "INFO", "A": "1"})
    assert made["NCCL_DEBUG"] == "INFO" and list(made) == sorted(made)
