"""``notify:`` of job.yaml: references only, and for every target a word about where a variable comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen_job.errors import JobError
from qwen_job.launch.given import missing_variables
from qwen_job.render import render_each
from tests.jobs import bundle, load, pinned_plan, plan, problems

HOOK = {"kind": "slack", "url": "env:SLACK_WEBHOOK"}
HOSTS: dict[str, Any] = {
    "hostfile": {"hosts": "n1"}, "image": "registry.example.com/x:y", "data": {"train": "/runs/chats.json"},
    "kubernetes": {"volumes": [{"name": "v", "mount_path": "/runs", "pvc": "v"}]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "field", "words"),
    [
        ("{kind: slack, url: 'https://hooks.slack.com/services/T/B/x'}", "notify[0].url", "others could read"),
        ("{kind: slack, url: 'http://h/x'}", "notify[0].url", "write env:NAME"),
        ("{kind: slack, url: SLACK_WEBHOOK}", "notify[0].url", "write env:NAME"),
        ("{kind: slack, url: 'env:'}", "notify[0].url", "write env:NAME"),
        ("{kind: slack, url: 'env:A B'}", "notify[0].url", "write env:NAME"),
        ("{kind: slack, url: 'file:relative'}", "notify[0].url", "file:/PATH"),
        ("{kind: slack, url: 'env:A', secret: 'env:B'}", "notify[0].secret", "only feishu and dingtalk"),
        ("{kind: feishu, url: 'env:A', secret: geheim}", "notify[0].secret", "write env:NAME"),
        ("{kind: teams, url: 'env:A'}", "notify[0].kind", "slack"),
        ("{kind: slack, url: 'env:A', events: []}", "notify[0].events", ""),
        ("{kind: slack, url: 'env:A', events: finished}", "notify[0].events", "give_up"),
        ("{kind: slack}", "notify[0].url", ""),
        ("env:A", "notify", ""),
    ],
)
def test_what_is_no_reference_is_refused_with_the_right_form(
    tmp_path: Path, entry: str, field: str, words: str
) -> None:
    found = problems(tmp_path, f"notify:\n  - {entry}\n" if field != "notify" else f"notify: {entry}\n")
    assert found and all(field in one for one in found) and words in found[0], found


def test_one_webhook_needs_no_list(tmp_path: Path) -> None:
    job = load(tmp_path, "notify: {kind: wecom, url: 'env:WECOM', events: done}\n")
    assert [(hook.kind, hook.url, hook.events) for hook in job.notify] == [("wecom", "env:WECOM", ["done"])]


@pytest.mark.parametrize("target", ["local", "slurm", "kubernetes", "helm", "hostfile"])
def test_the_address_is_in_no_file_of_any_target(tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLACK_WEBHOOK", "https://hooks.slack.com/topsecret")
    hook = {**HOOK, "url": "file:/shared/hook"} if target == "hostfile" else HOOK
    kubernetes = {**HOSTS["kubernetes"], "secret_env": {"SLACK_WEBHOOK": "chat/slack"}}
    files = bundle(tmp_path, target, **{**HOSTS, "kubernetes": kubernetes}, notify=[hook]).files
    text = "\n".join(files.values())
    assert "topsecret" not in text and "notify:" in text
    if target in ("kubernetes", "helm"):
        assert "SLACK_WEBHOOK" in text and "slack" in text


@pytest.mark.parametrize(
    ("target", "field", "words"),
    [
        ("kubernetes", "notify[0].url", "kubernetes.secret_env: {SLACK_WEBHOOK: SECRET/KEY}"),
        ("helm", "notify[0].url", "kubernetes.secret_env: {SLACK_WEBHOOK: SECRET/KEY}"),
        ("hostfile", "notify[0].url", "write file:/PATH"),
    ],
)
def test_a_variable_that_no_process_would_have_is_refused(tmp_path: Path, target: str, field: str, words: str) -> None:
    with pytest.raises(JobError) as refused:
        bundle(tmp_path, target, **HOSTS, notify=[HOOK])
    assert [problem.field for problem in refused.value.problems] == [field]
    assert words in refused.value.problems[0].message


def test_a_launcher_that_sends_nothing_is_refused(tmp_path: Path) -> None:
    hosts = {**HOSTS, "hostfile": {"hosts": "n1", "launcher": "deepspeed"}}
    with pytest.raises(JobError, match=r"hostfile\.launcher deepspeed"):
        bundle(tmp_path, "hostfile", **hosts, notify=[{**HOOK, "url": "file:/hook"}])


def test_the_address_in_env_is_refused_whatever_its_name(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="is for a webhook, and others can read env") as refused:
        bundle(tmp_path, "local", env={"HERE": "http://10.0.0.1/x"}, notify=[{**HOOK, "url": "env:HERE"}])
    assert refused.value.problems[0].field == "env.HERE"


def test_a_container_that_starts_without_variables_is_given_those_of_webhooks(tmp_path: Path) -> None:
    container = {"runtime": "docker", "image": "registry.example.com/x:y"}
    script = bundle(tmp_path, "slurm", container=container, notify=[HOOK]).files["tiny.sbatch"]
    assert "--env SLACK_WEBHOOK" in script
    assert "SLACK_WEBHOOK" not in bundle(tmp_path, "slurm", container=container).files["tiny.sbatch"]


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({}, ['"$attempt" -ge 10', '"$((without_progress + 1))" -ge 3']),
        ({"slurm": {"requeue": False}}, ["last_with=yes last_without=yes"]),
        ({"slurm": {"chain": 4}}, ['"$((attempt + 1))" -ge 4', '"$((without_progress + 1))" -ge 3']),
    ],
)
def test_the_batch_script_tells_which_attempt_is_the_last(
    tmp_path: Path, settings: dict[str, Any], lines: list[str]
) -> None:
    script = bundle(tmp_path, "slurm", notify=[HOOK], **settings).files["tiny.sbatch"]
    part = script[script.index("last_with=no") : script.index("/launch/last_attempt")]
    assert all(line in part for line in lines)
    assert "last_with" not in bundle(tmp_path, "slurm", **settings).files["tiny.sbatch"]


def test_submit_looks_at_the_shells_variable_before_the_job_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = pinned_plan(tmp_path, notify=[HOOK]).job
    monkeypatch.delenv("SLACK_WEBHOOK", raising=False)
    assert "SLACK_WEBHOOK is not set" in missing_variables(job, "slurm")[0]
    assert missing_variables(job, "kubernetes") == []
    monkeypatch.setenv("SLACK_WEBHOOK", "https://hooks.slack.com/services/T/B/x")
    assert missing_variables(job, "local") == []
    monkeypatch.setenv("SLACK_WEBHOOK", "topsecret")
    with pytest.raises(JobError, match="SLACK_WEBHOOK is not an http") as refused:
        missing_variables(job, "slurm")
    assert "topsecret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("monitor: {prometheus_file: /x/figures.txt}\n", "monitor.prometheus_file", "ends in .prom"),
        ("monitor: {prometheus_port: 80}\n", "monitor.prometheus_port", "1024"),
        ("monitor: {report_every: -1}\n", "monitor.report_every", ""),
        ("monitor: {port: 9400}\n", "monitor.port", "unknown field"),
    ],
)
def test_what_monitor_cannot_do_is_refused(tmp_path: Path, text: str, field: str, words: str) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1 and field in found[0] and words in found[0], found


@pytest.mark.parametrize("target", ["slurm", "kubernetes"])
def test_the_runs_of_a_sweep_do_not_share_a_file_for_prometheus(tmp_path: Path, target: str) -> None:
    given = plan(
        tmp_path,
        "monitor: {prometheus_file: /runs/x.prom}\nsweep: {train.seed: [1, 2]}\nimage: registry.example.com/x:y\n",
    )
    with pytest.raises(JobError, match="several runs of the sweep"):
        render_each(given, target)


def test_a_containers_mounts_reach_the_file_for_prometheus(tmp_path: Path) -> None:
    container = {"runtime": "apptainer", "image": "/images/x.sif"}
    monitor = {"prometheus_file": "/var/lib/node_exporter/x.prom"}
    script = bundle(tmp_path, "slurm", container=container, monitor=monitor).files["tiny.sbatch"]
    assert "/var/lib/node_exporter:/var/lib/node_exporter" in script
