"""``qwen-job plan`` as a user calls it."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from qwen_job.cli import cli
from qwen_job.errors import EnvironmentFault, OutOfMemory, QwenJobError, UsageError
from tests.plan.jobs import BASE, job_file
from tests.plan.test_calibrate import measured_run

LAZY = ("plan.search.smallest", "plan.explain", "plan.estimate.calibrate", "data")


def run(*args: object) -> str:
    result = CliRunner().invoke(cli, ["plan", *map(str, args)], catch_exceptions=False, standalone_mode=False)
    return result.stdout


@pytest.fixture
def job(tmp_path: Path) -> Path:
    rows = [{"conversations": [{"from": "user", "value": "你好" * 30}, {"from": "assistant", "value": "hello " * 40}]}]
    (tmp_path / "chats.json").write_text(json.dumps(rows * 640, ensure_ascii=False), encoding="utf-8")
    text = BASE.replace("/shared/runs/demo", str(tmp_path / "run"))
    return job_file(tmp_path, text.replace("/data/chats.json", str(tmp_path / "chats.json")))


def test_the_plan_tells_time_cost_and_what_lost(job: Path) -> None:
    text = run(job, "--set", "cluster.price_per_gpu_hour=2")
    assert "Data   640 conversations" in text and "(counted, tokens estimated from the text)" in text
    for word in ("Memory of one GPU", "Host   ", "Disk   ", "Step   ", "Epoch  ", "Run    ", "GPU-hours", "cost "):
        assert word in text
    assert "Also considered (--all shows 11)" in text and text.count("micro-batch") < run(job, "--all").count("micro-b")


def test_a_hundred_tokens_are_counted_as_about_that(job: Path) -> None:
    data = json.loads(run(job, "--json"))["run"]["data"]
    assert data["samples"] == 640
    assert data["tokens"] / 640 == pytest.approx(60 / 1.5 + 240 / 4 + 28 / 4 + 15)  # question, answer, system, frames


def test_compressed_data_and_weights_count_too(job: Path) -> None:
    text = (job.parent / "chats.json").read_bytes()
    (job.parent / "more.json.gz").write_bytes(gzip.compress(text))
    files = f"data.train=[chats.json, {{path: {job.parent}/more.json.gz, weight: 2}}]"
    found = json.loads(run(job, "--set", files.replace("chats.json", f"{job.parent}/chats.json", 1), "--json"))
    assert found["run"]["data"]["samples"] == 3 * 640


def test_long_data_is_estimated_from_its_beginning(job: Path) -> None:
    from qwen_job.api.plan_count import data_size
    from qwen_job.job import load_job

    size, missing, _ = data_size(load_job([job]), limit=20_000)
    assert size is not None and not missing
    assert size.samples == pytest.approx(640, rel=0.05) and "estimated from the first" in size.source


def test_tools_calls_and_reasoning_count_too(job: Path) -> None:
    from qwen_job.api.plan_count import data_size
    from qwen_job.job import load_job

    question, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    calls = [{"name": "f", "arguments": {"x": "y" * 400}}]
    full = {**answer, "reasoning_content": "z" * 400, "tool_calls": calls}
    tools = [{"name": "f", "description": "w" * 400}]
    sizes = []
    for row in ({"messages": [question, answer]}, {"messages": [question, full], "tools": tools}):
        (job.parent / "chats.json").write_text(json.dumps([row]), encoding="utf-8")
        size, *_ = data_size(load_job([job]))
        assert size is not None
        sizes.append(size.tokens)
    assert sizes[1] - sizes[0] == pytest.approx(1200 / 4, abs=50)


def test_data_that_is_elsewhere_is_said_to_be(job: Path) -> None:
    (job.parent / "chats.json").unlink()
    assert "chats.json is not on this machine; use --samples N" in run(job)
    text = run(job, "--samples", 50_000)
    assert "at most 50,000 rows of 512 an epoch" in text and text.startswith("Fits: at most ")
    assert "Run    at most " in text and "without --tokens-per-sample" in text
    assert "at most" not in run(job, "--samples", 50_000, "--tokens-per-sample", 100)


def test_the_first_line_is_the_verdict(job: Path) -> None:
    assert re.match(r"Fits: \d+ min.*, \d+\.\d GPU-hours, bound by \w+\n", run(job))
    assert run(job, "--no-hub", "--set", "model=acme/unknown").startswith(
        "Unknown: the shape of the model is not known"
    )


def test_gpu_hours_count_spare_nodes_and_say_so(job: Path) -> None:
    hours = [json.loads(run(job, "--json", "--set", f"slurm.spare_nodes={n}"))["run"]["gpu_hours"][1] for n in (0, 2)]
    assert hours[1] == pytest.approx(3 * hours[0])
    text = run(job, "--set", "slurm.spare_nodes=2")
    assert re.search(r"GPUs .*GPU-hours .*, with the 2 spare nodes, which are idle \(slurm\.spare_nodes\)\n", text)
    one = run(job, "--fit", "--set", "slurm.spare_nodes=1")
    assert "GPU-hours are with the spare node, which is idle (slurm.spare_nodes)." in one
    assert "spare" not in run(job) + run(job, "--fit")


def test_the_network_of_one_node_is_named_by_its_links(job: Path) -> None:
    slow = ["--set", "train.model_max_length=64", "--set", "deepspeed.zero_stage=3"]
    slow += ["--set", "cluster.gpu=L40S", "--set", "train.per_device_train_batch_size=1"]
    assert "bound by PCIe" in run(job, *slow) and "mostly over PCIe" in run(job, *slow, "--explain", "step.network")


def test_a_reason_is_written_once(job: Path) -> None:
    assert run(job).count("fastest of ") == 1


def test_a_sweep_tells_what_all_its_runs_take(job: Path) -> None:
    sweep = "sweep.train.learning_rate=[1e-5, 2e-5, 3e-5]"
    one = json.loads(run(job, "--json"))["run"]["gpu_hours"][1]
    result = CliRunner().invoke(cli, ["plan", str(job), "--set", sweep], catch_exceptions=False, standalone_mode=False)
    assert f"{3 * one:,.1f} GPU-hours" in result.stderr and "GiB of disk" in result.stderr
    assert "by their mean loss (for a held-out loss, write data.eval or data.eval_split)" in result.stderr


@pytest.mark.parametrize(
    "row", ['{"conversations": []}', '{"conversations": [{"from": "user", "value": "q"}]}', '{"conversations": 5}']
)
def test_an_invalid_row_is_counted_and_named(job: Path, row: str) -> None:
    rows = (job.parent / "chats.json").read_text("utf-8")
    (job.parent / "chats.json").write_text(f"{rows[:-1]}, {row}]", "utf-8")
    result = CliRunner().invoke(cli, ["plan", str(job)], catch_exceptions=False, standalone_mode=False)
    assert "data.train: 1 of 641 rows is invalid (chats.json:641: " in result.stderr
    assert "would end with exit code 4; " in result.stderr and "640 conversations" in result.stdout
    assert result.stdout.startswith("The run would refuse the data: see the warnings about data.train\nFits: ")


@pytest.mark.parametrize(("sets", "count"), [([], 1), (["data.thinking=strip"], 0), (["data.thinking=as_written"], 0),
                                            (["model=Qwen/Qwen3-8B"], 0), (["data.template=chatml"], 1)])  # fmt: skip
def test_reasoning_without_a_place_in_the_template_is_warned_of(job: Path, sets: list[str], count: int) -> None:
    answers = [{"reasoning_content": "hm", "content": "a"}, {"content": "<think>\nas text\n</think>\n\na"}]
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", **answer}]} for answer in answers]
    (job.parent / "chats.json").write_text(json.dumps(rows), "utf-8")
    given = [f"--set={one}" for one in ["model=Qwen/Qwen2.5-7B-Instruct", *sets]]
    result = CliRunner().invoke(cli, ["plan", str(job), *given], catch_exceptions=False, standalone_mode=False)
    assert result.stderr.count("1 of 2 rows has reasoning, for which") == count
    assert result.stderr.count("write data.thinking: strip to train without it") == count
    assert result.stdout.startswith("The run would refuse the data") == bool(count)


def test_the_smallest_cluster(job: Path) -> None:
    assert "demo fits 1 x 1 A100-80G: ZeRO-2" in run(job, "--fit")
    found = json.loads(run(job, "--fit", "--json"))
    assert found[0]["gpu"] == "A100-80G" and {one["gpu"] for one in found} > {"V100-32G", "H100-80G"}


def test_no_cluster_at_all_is_an_exit_code_of_its_own(job: Path) -> None:
    huge = [f"--set=train.{name}" for name in ("per_device_train_batch_size=65536", "global_batch_size=null")]
    result = CliRunner().invoke(cli, ["plan", str(job), "--fit", *huge])
    assert isinstance(result.exception, OutOfMemory) and "what would work" in result.stdout


def test_explain_and_compare(job: Path) -> None:
    assert run(job, "--explain", "precision").splitlines()[0] == "precision: bf16"
    other = job_file(job.parent, job.read_text().replace("A100-80G", "H100-80G"), "other.yaml")
    lines = run(job, "--compare", other).splitlines()
    assert lines[1].split() == ["cluster.gpu", "A100-80G", "H100-80G"]
    assert json.loads(run(job, "--compare", other, "--json"))[0]["field"] == "cluster.gpu"


def test_calibrated_constants_go_back_into_a_job(job: Path, tmp_path: Path) -> None:
    runs = [measured_run(tmp_path / f"run{micro}", micro) for micro in (1, 8)]
    (runs[0] / "job.yaml").write_text(job.read_text())
    snippet = run("--calibrate", *runs)
    assert yaml.safe_load(snippet)["plan"]["activation_factor"] == pytest.approx(1.2, rel=0.01)
    site = job_file(tmp_path, snippet, "site.yaml")
    before, after = (json.loads(run(*layers, "--json"))["memory"]["gpu"] for layers in ((job,), ("-f", site, job)))
    assert after["weights"] == before["weights"] and after != before


def test_the_picture_is_svg_and_replaces_nothing_else(job: Path, tmp_path: Path) -> None:
    run(job, "--svg", tmp_path / "memory.svg")
    run(job, "--svg", tmp_path / "memory.svg")
    assert ElementTree.parse(tmp_path / "memory.svg").getroot().tag.endswith("svg")
    (tmp_path / "notes.svg").write_text("mine")
    with pytest.raises(EnvironmentFault, match="is not an SVG image"):
        run(job, "--svg", tmp_path / "notes.svg")
    assert (tmp_path / "notes.svg").read_text() == "mine"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--fit", "--explain", "precision"], "--fit and --explain cannot be combined"),
        (["--fit", "--svg", "x.svg"], "--svg cannot be combined with --fit"),
        (["--all", "--explain", "precision"], "--all cannot be combined with --explain"),
        (["--calibrate"], "--calibrate needs the run folder"),
        (["--calibrate", "x", "--samples", "5"], "--samples has no effect with --calibrate"),
        (["a.yaml", "b.yaml"], "expected one job, got 2"),
    ],
)
def test_options_that_exclude_each_other(args: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(*args)


def test_another_picture_format_is_refused(job: Path) -> None:
    with pytest.raises(QwenJobError, match=r"does not end in \.svg"):
        run(job, "--svg", "x.png")


def test_help_and_render_load_none_of_it(job: Path) -> None:
    program = (
        "import sys, qwen_job.cli as c\n"
        "try: c.cli.main(sys.argv[2:])\nexcept SystemExit: pass\n"
        "print(*[m for m in sys.argv[1].split(',') if m in sys.modules], file=sys.stderr)"
    )

    def loaded(modules: str, *args: str) -> str:
        command = [sys.executable, "-c", program, modules, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr.splitlines()[-1]

    assert loaded("qwen_job.plan,qwen_job.job,yaml,pydantic", "--help") == ""
    heavy = ",".join([*(f"qwen_job.{name}" for name in LAZY), "numpy", "torch"])
    assert loaded(heavy, "render", str(job), "-t", "local") == ""


def test_a_rooms_own_errors_are_not_in_the_table_of_exit_codes() -> None:
    from qwen_job.errors import JobError, table
    from qwen_job.facts.lookup import UnknownName

    assert issubclass(UnknownName, JobError) and "UnknownName" not in {name for _, name, _ in table()}


def test_fewer_gpus_a_node_are_tried_where_host_memory_is_short(job: Path) -> None:
    large = ("--fit", "--set", "model=Qwen/Qwen2.5-72B-Instruct", "--set", "cluster.gpus_per_node=8", "--json")
    full, fewer = json.loads(run(job, *large, "--set", "cluster.memory_gib=512"))[:2]
    assert (full["gpu"], full["nodes"], full["gpus_per_node"]) == ("A100-80G", 3, 8)
    assert (fewer["gpu"], fewer["nodes"], fewer["gpus_per_node"]) == ("A100-80G", 3, 1)
    assert max(full["host_bytes"], fewer["host_bytes"]) < 512 * 2**30
    text = run(job, *large[:-1], "--set", "cluster.memory_gib=512")
    need = re.search(r"^limited by cluster.memory_gib: 512; with (\d+) GiB, 1 x 4 fits$", text, re.MULTILINE)
    assert need is not None and "\nThe job's own GPU first, then others, the fewest GPUs first.\n" in text
    enough = run(job, *large[:-1], "--set", f"cluster.memory_gib={need[1]}")
    assert "demo fits 1 x 4 A100-80G" in enough and "limited by" not in enough
    assert "demo fits 1 x 4" not in run(job, *large[:-1], "--set", f"cluster.memory_gib={int(need[1]) - 1}")
    (short, *_) = json.loads(run(job, *large, "--set", "cluster.memory_gib=150"))
    assert short["fits"] and short["nodes"] > 3 and short["gpus_per_node"] < 8
    assert "Host memory is not limited here: 1 x 1 A100-80G takes" in run(job, "--fit")


def test_the_plan_says_what_keeps_the_batch(job: Path) -> None:
    assert "changes with the number of GPUs: train.global_batch_size: 32 keeps it" in run(job)
    assert "keeps it" not in run(job, "--set", "train.global_batch_size=32")


def test_the_longest_row_is_shown_by_gpus_that_share_it_and_what_more_nodes_add(job: Path) -> None:
    sets = ("--set", "model=Qwen/Qwen3-4B", "--set", "cluster.gpus_per_node=4")
    text = run(job, "--longest", *sets)
    assert "fit on 1 x 4 A100-80G" in text and "2 x 4 A100-80G:" in text
    assert "The model was trained with 40,960 positions." in text
    values = json.loads(run(job, "--longest", "--json", *sets))
    assert [one["sequence_parallel_size"] for one in values["here"]] == [1, 1, 1, 2, 2, 2, 4, 4, 4]
    assert all(f"{one['length']:,} tokens" in text for one in values["here"])
    assert "tiled MLP, activations on the host" in text and f"{values['larger']['length']:,} tokens" in text


def test_a_cluster_without_room_for_any_row_is_an_error(job: Path) -> None:
    with pytest.raises(OutOfMemory, match="no row of any length fits this cluster"):
        run(job, "--longest", "--set", "model=Qwen/Qwen2.5-72B-Instruct")
    with pytest.raises(UsageError, match="--fit and --longest cannot be combined"):
        run(job, "--longest", "--fit")
