"""The doctor for Slurm: both shapes of sinfo's JSON, what follows from a cluster's settings, what is left to people.

``old`` is what Slurm 22.05 printed, cut to the fields that are read. ``new`` was written by hand after descriptions of
the newer versions' format (data_parser v0.0.40 and later); no such Slurm was at hand.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_job.errors import ClusterRefused, EnvironmentFault
from qwen_job.job import load_job
from qwen_job.job.slurm_time import slurm_seconds
from qwen_job.launch.slurm.doctor import Proposal, gpu_called, propose
from qwen_job.launch.slurm.survey import (
    Survey,
    config_of,
    gpus_of,
    nodes_of,
    partitions_of,
)
from tests.jobs import FIVE_LINES

PARTITIONS = """\
PartitionName=gpu AllowGroups=ALL Default=YES MaxTime=2-00:00:00 OverSubscribe=NO PreemptMode=REQUEUE State=UP
PartitionName=cpu AllowGroups=ALL Default=NO MaxTime=UNLIMITED OverSubscribe=NO PreemptMode=REQUEUE State=UP
"""
CONFIG = """\
Configuration data as of 2026-11-23T23:49:30
JobRequeue              = 1
MaxArraySize            = 1001
PreemptType             = preempt/none
SelectType              = select/cons_tres
SelectTypeParameters    = CR_CORE_MEMORY
TmpFS                   = /tmp
"""


def old(name: str, gres: str = "gpu:a100:8(S:0-1)", features: str = "a100,80g", **more: Any) -> dict[str, Any]:
    return {
        "name": name, "gres": gres, "features": features, "cpus": 128, "real_memory": 1_031_000, "partitions": ["gpu"],
        "state": "idle", "state_flags": [], "temporary_disk": 0, **more,
    }  # fmt: skip


def new(names: list[str], partition: str, state: list[str]) -> dict[str, Any]:
    """One record of ``sinfo --json`` from Slurm 23.02 on."""
    unset = {"set": False, "infinite": True, "number": 0}
    return {
        "port": 6818,
        "node": {"state": state},
        "nodes": {"allocated": 0, "idle": len(names), "other": 0, "total": len(names), "nodes": names},
        "cpus": {"allocated": 0, "idle": 128, "other": 0, "total": 128, "minimum": 128, "maximum": 128},
        "memory": {
            "minimum": 1_031_000, "maximum": 1_031_000, "allocated": 0,
            "free": {"minimum": {"set": True, "infinite": False, "number": 9}, "maximum": unset},
        },
        "disk": {"minimum": 0, "maximum": 0},
        "features": {"total": "a100,80g", "active": "a100,80g"},
        "gres": {"total": "gpu:a100:8(S:0-1)", "used": "gpu:a100:0"},
        "partition": {"name": partition, "maximums": {"time": unset}, "partition": {"state": ["UP"]}},
    }  # fmt: skip


def cluster(*nodes: dict[str, Any], **more: Any) -> Survey:
    found = Survey(
        nodes=tuple(nodes_of({"nodes": list(nodes)})),
        partitions=partitions_of(PARTITIONS),
        config=config_of(CONFIG),
        pyxis=False,
        runtimes=(),
        adapters=(),
        accounts=(),
    )
    return replace(found, **more)


def profile(proposal: Proposal) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load(proposal.text("test"))
    return value


def said(proposal: Proposal) -> str:
    return "\n".join([*proposal.warnings, *proposal.notes])


def test_both_shapes_tell_the_same() -> None:
    older = nodes_of({"nodes": [old("n1", partitions=["gpu", "big"]), old("n2", state="down")]})
    records = [
        new(["n1"], "gpu", ["IDLE"]),
        new(["n1"], "big", ["IDLE"]),
        new(["n2"], "gpu", ["DOWN", "NOT_RESPONDING"]),
    ]
    assert nodes_of({"sinfo": records}) == older
    assert [node.usable for node in older] == [True, False]


def test_another_shape_is_refused_in_one_line() -> None:
    for answer in ({}, {"sinfo": [{}]}, {"nodes": [{"gres": 5}]}, {"sinfo": 3}):
        with pytest.raises(EnvironmentFault, match="sinfo --json: unexpected output"):
            nodes_of(answer)


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:a100:8(S:0-1),nvme:1", {"a100": 8}), ("gpu:8", {"": 8}), ("gpu:8(S:0)", {"": 8}), ("", {}),
        ("(null)", {}), ("nic:gpu:3", {}), ("gpu:a100:4(S:0),gpu:a100:4(S:1)", {"a100": 8}),
        ("craynetwork:4,gpu:v100:2,gpu:a100_3g.20gb:4", {"v100": 2, "a100_3g.20gb": 4}),
    ],
)  # fmt: skip
def test_gres_is_read_by_type(gres: str, gpus: dict[str, int]) -> None:
    assert gpus_of(gres) == gpus


@pytest.mark.parametrize(
    ("kind", "features", "names"),
    [
        ("a100", {"80g"}, ["A100-80G"]), ("a100", {"a100-40gb"}, ["A100-40G"]),
        ("a100", set(), ["A100-40G", "A100-80G"]),
        ("nvidia_a100-sxm4-80gb", set(), ["A100-80G"]), ("h100", set(), ["H100-80G"]), ("rtx4090", set(), ["RTX-4090"]),
        ("tesla_v100-sxm2-32gb", set(), ["V100-32G"]), ("gtx1080", set(), []), ("", {"80g"}, []),
    ],
)  # fmt: skip
def test_a_type_is_the_gpu_that_it_means_or_several(kind: str, features: set[str], names: list[str]) -> None:
    assert gpu_called(kind, features) == names


def test_the_profile_is_a_layer_under_a_job(tmp_path: Path) -> None:
    proposal = propose(cluster(old("n1"), old("n2"), pyxis=True, accounts=("lab",)))
    assert profile(proposal) == {
        "cluster": {"gpu": "A100-80G", "gpus_per_node": 8, "cpus_per_gpu": 16, "memory_gib": 1006.8},
        "container": {"runtime": "pyxis"},
        "slurm": {"partition": "gpu", "account": "lab", "gpu_request": "gpus-per-node", "time": "2-00:00:00"},
    }
    (tmp_path / "site.yaml").write_text(proposal.text("test"))
    (tmp_path / "job.yaml").write_text(FIVE_LINES.replace("cluster: {gpu: A100-80G, gpus_per_node: 2}\n", ""))
    job = load_job([tmp_path / "site.yaml", tmp_path / "job.yaml"])
    assert (job.cluster.gpus_per_node, job.slurm.time) == (8, 172_800)


def test_every_line_says_where_it_comes_from() -> None:
    lines = propose(cluster(old("n1"))).text("test").splitlines()
    assert all("  # " in line for line in lines if line.startswith("  "))


def test_what_cannot_be_known_is_left_to_a_person() -> None:
    proposal = propose(cluster(old("n1", features=""), runtimes=("apptainer",), accounts=("a", "b")))
    assert "gpu" not in profile(proposal)["cluster"] and "account" not in profile(proposal)["slurm"]
    assert "write A100-40G or A100-80G" in said(proposal)
    assert "# runtime:" in proposal.text("test") and "# interconnect:" in proposal.text("test")


def test_the_largest_group_of_gpus_is_chosen_and_the_others_are_named() -> None:
    nodes = [old("n1"), old("n2"), old("v1", "gpu:v100:4", "32g"), old("c1", "", "", partitions=["cpu"])]
    proposal = propose(cluster(*nodes))
    assert profile(proposal)["slurm"]["gpu_type"] == "a100"
    assert "also has other GPUs: v100" in said(proposal)


def test_a_partition_can_be_named() -> None:
    proposal = propose(cluster(old("n1"), old("c1", "", "", partitions=["cpu"])), "cpu")
    assert profile(proposal)["slurm"]["partition"] == "cpu" and profile(proposal)["cluster"]["gpu"] == "CPU"
    assert "no node has a gres named gpu" in said(proposal) and "no time limit" in said(proposal)
    with pytest.raises(ClusterRefused, match="the cluster has gpu, cpu"):
        propose(cluster(old("n1")), "nope")


def test_nodes_that_are_down_are_left_out() -> None:
    proposal = propose(cluster(old("n1"), old("n2", state="drained", real_memory=1)))
    assert profile(proposal)["cluster"]["memory_gib"] == 1006.8
    assert "left out 1 nodes of gpu" in said(proposal)
    with pytest.raises(ClusterRefused, match="no node that could start a job"):
        propose(cluster(old("n1", state="down")))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"JobRequeue": "0"}, "slurm.chain"),
        ({"PreemptType": "preempt/qos", "PreemptMode": "CANCEL"}, "cancelled after 0 s"),
        ({"MaxArraySize": "101"}, "at most 100 jobs"),
        ({"AccountingStorageEnforce": "associations,limits"}, "slurm.account: this cluster requires one"),
        ({"JobContainerType": "job_container/tmpfs"}, "its own /tmp"),
    ],
)
def test_settings_that_surprise_are_told(settings: dict[str, str], words: str) -> None:
    found = cluster(old("n1"))
    # The partition's own PreemptMode comes before the cluster's.
    partitions = {
        name: replace(one, fields={k: v for k, v in one.fields.items() if k not in settings})
        for name, one in found.partitions.items()
    }
    assert words in said(propose(replace(found, config={**found.config, **settings}, partitions=partitions)))


def test_lines_that_follow_from_settings() -> None:
    found = cluster(old("n1", temporary_disk=900_000))
    config = {**found.config, "SelectType": "select/cons_res", "DefMemPerCPU": "4000"}
    section = profile(propose(replace(found, config=config)))["slurm"]
    assert (section["gpu_request"], section["memory"], section["scratch"]) == ("gres", "0", "/tmp")


def test_times_of_slurm() -> None:
    assert [slurm_seconds(text) for text in ("1-02:00:00", "00:30:00", "UNLIMITED", "")] == [93_600, 1800, None, None]
