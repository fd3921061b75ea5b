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


def pdsh(*options: str) -> dict[str, Any]:
    return {"hostfile": {"hosts": "a", "launcher": "pdsh", "ssh_options": list(options)}}


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "pdsh"])
def test_ssh_s_options_reach_every_launcher_and_only_the_first_host_has_an_address_of_its_own(
    tmp_path: Path, launcher: str
) -> None:
    options = ["-p", "2222", "-l", "me", "-J", "gate"]
    section = {"hosts": "a,b", "launcher": launcher, "ssh_options": options, "master_addr": "10.0.0.7"}
    script = bundle(tmp_path, "hostfile", cluster={"nodes": 2}, hostfile=section).files["launch.sh"]
    assert "-p 2222 -l me -J gate" in script
    assert "\nmaster_addr=10.0.0.7\n" in script
    assert ("--no_ssh_check" in script) == (launcher == "pdsh")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({}, "hostfile.hosts: is empty"),
        (
            {"hostfile": {"hosts": "a,b"}},
            "hostfile.hosts: names 2 hosts, but cluster.nodes is 1; make them equal, or move",
        ),
        ({"hostfile": {"hosts": ["gpu1", "gpu1"]}, "cluster": {"nodes": 2}}, "names 1 hosts (gpu1 more than once"),
        ({"hostfile": {"hosts": ["slurm:7"]}}, "hostfile.hosts[0]: 'slurm:7' is not a host"),
        (
            {"hostfile": {"hosts": ["localhost", "b"]}, "cluster": {"nodes": 2}},
            "hostfile.hosts: localhost means a different machine",
        ),
        (
            {"hostfile": {"hosts": ["b", "127.0.1.1"]}, "cluster": {"nodes": 2}},
            "hostfile.hosts: 127.0.1.1 means a different machine",
        ),
        (
            {"hostfile": {"hosts": ["b", "127.1"]}, "cluster": {"nodes": 2}},
            "hostfile.hosts: 127.1 means a different machine",
        ),
        (
            {"hostfile": {"hosts": ["0.0.0.0", "b"]}, "cluster": {"nodes": 2}},
            "hostfile.hosts: 0.0.0.0 means a different machine",
        ),
        (
            {"hostfile": {"hosts": "a,b", "master_addr": "localhost"}, "cluster": {"nodes": 2}},
            "hostfile.master_addr: localhost means a different machine",
        ),
        ({"hostfile": {"hosts": "a", "spare_hosts": "a"}}, "hostfile.spare_hosts: a is one of hostfile.hosts, too"),
        ({"hostfile": {"hosts": "a", "spare_hosts": "localhost"}}, "hostfile.spare_hosts: localhost means a different"),
        ({"hostfile": {"hosts": "a", "spare_hosts": ["slurm"]}}, "hostfile.spare_hosts[0]: 'slurm' is not a host"),
        (
            {"hostfile": {"hosts": "a", "spare_hosts": "b", "launcher": "pdsh"}},
            "hostfile.spare_hosts: hostfile.launcher: pdsh does not use spare hosts: use torchrun",
        ),
        ({"hostfile": {"hosts": "ubuntu@a"}}, "write a, and hostfile.ssh_options: [-l, ubuntu]"),
        ({"hostfile": {"hosts": "a:2222"}}, "write a, and hostfile.ssh_options: [-p, '2222']"),
        ({"hostfile": {"hosts": "me@a:22"}}, "hostfile.ssh_options: [-l, me, -p, '22']"),
        ({"hostfile": {"hosts": "ace:22"}}, "hostfile.ssh_options: [-p, '22']"),
        ({"hostfile": {"hosts": "a", "master_addr": "http://a"}}, "hostfile.master_addr: 'http://a' is not an address"),
        (pdsh("-o", "ProxyCommand=ssh -W gw b"), "hostfile.ssh_options[1]: pdsh would not pass"),
        (pdsh("-S", "/tmp/%r"), "hostfile.ssh_options[1]: pdsh would not pass"),
        (
            {"hostfile": {"hosts": ["fd77::1"], "launcher": "pdsh"}},
            "hostfile.hosts: pdsh does not accept an IPv6 address",
        ),
        (
            {"hostfile": {"hosts": "a"}, "env": {"A": "$x", "B": "ok", "C": "`"}},
            "env.C: contains '`', which .deepspeed_env",
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


@pytest.mark.parametrize("options", [["-l", "bob"], ["-lbob"], ["-o", "User=bob"], ["-oUser=bob"]])
def test_a_home_folder_of_this_machine_is_refused_for_another_user(tmp_path: Path, options: list[str]) -> None:
    section = {"hosts": "a,b", "python": "~/venv/bin/python", "ssh_options": options}
    with pytest.raises(JobError) as caught:
        bundle(tmp_path, "hostfile", cluster={"nodes": 2}, hostfile=section)
    assert "hostfile.python: ~ is your home on this machine, and the hosts run Python as bob" in str(caught.value)


@pytest.mark.parametrize("options", [[], ["-p", "2222"], ["-o", "UserKnownHostsFile=/dev/null"]])
def test_a_home_folder_is_expanded_for_the_same_user(tmp_path: Path, options: list[str]) -> None:
    section = {"hosts": "a,b", "python": "~/venv/bin/python", "ssh_options": options}
    text = bundle(tmp_path, "hostfile", cluster={"nodes": 2}, hostfile=section).files["launch.sh"]
    assert str(Path("~/venv/bin/python").expanduser()) in text
