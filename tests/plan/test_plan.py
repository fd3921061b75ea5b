"""The whole plan: pure, reasoned, and honest about what it does not know."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_job.errors import JobError
from qwen_job.job import load_job
from qwen_job.plan import make_plan
from qwen_job.plan.advice import bytes_of
from qwen_job.plan.train_config import train_config
from qwen_job.resources import resource
from tests.jobs import pinned_plan, plan, problems

JOBS = sorted(resource("configs", "jobs").glob("*.yaml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_choice_says_why(path: Path) -> None:
    made = make_plan(load_job([path]))
    assert all(decision.reason for decision in made.decisions)
    fields = [decision.field for decision in made.decisions]
    assert len(fields) == len(set(fields)) and {"precision", "deepspeed.zero_stage", "train.global_batch_size"} <= set(
        fields
    )


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_what_was_written_is_kept(path: Path) -> None:
    job = load_job([path])
    for decision in make_plan(job).decisions:
        wrote = job.wrote(*decision.field.split("."))
        assert decision.written == wrote or decision.field == "precision", decision


def test_a_plan_is_a_function_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = plan(tmp_path)
    files = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("HOME", "/elsewhere")
    monkeypatch.chdir("/")
    second = plan(tmp_path)
    assert (first.decisions, first.env, first.warnings) == (second.decisions, second.env, second.warnings)
    assert train_config(first) == train_config(second) and first.deepspeed_config == second.deepspeed_config
    assert sorted(tmp_path.rglob("*")) == files


def test_an_unknown_gpu_by_its_numbers_has_no_guessed_peak(tmp_path: Path) -> None:
    made = pinned_plan(tmp_path)
    assert train_config(made).peak_tflops is None and made.gpu.name == "X1"
    known = pinned_plan(
        tmp_path, cluster={"gpu": {"name": "X", "memory_gib": 1, "compute_capability": 9, "peak_tflops": {"bf16": 5}}}
    )
    assert train_config(known).peak_tflops == 5


def test_an_unknown_gpu_by_name_is_refused_with_those_known(tmp_path: Path) -> None:
    assert "cluster.gpu: " in problems(tmp_path, "", "cluster.gpu=A1000x")[0]


def test_an_unknown_model_is_said_not_guessed(tmp_path: Path) -> None:
    made = plan(tmp_path, "", "model=acme/unknown")
    assert made.shape is None and "model.name: acme/unknown: its config is unknown" in made.warnings[0]
    assert "did you mean" not in made.warnings[0]
    local = plan(tmp_path, "", "model=/nosuch/model")
    assert "cannot read a model there" in local.warnings[0]


def test_a_misspelt_official_model_is_asked_about(tmp_path: Path) -> None:
    made = plan(tmp_path, "", "model=Qwen/Qwen2.5-7B-Instrct")
    assert "is not estimated; did you mean 'Qwen/Qwen2.5-7B-Instruct'?" in made.warnings[0]


@pytest.mark.parametrize(("share", "warned"), [("0.0001", True), ("0.002", False), ("0", False)])
def test_a_share_that_holds_out_less_than_a_row_is_warned_of(tmp_path: Path, share: str, warned: bool) -> None:
    made = plan(tmp_path, "", "data={train: /d.json, samples: 500, tokens_per_sample: 90}", f"data.eval_split={share}")
    found = [one for one in made.warnings if one.startswith("data.eval_split: ")]
    assert [one.partition(";")[0] for one in found] == [
        "data.eval_split: 0.0001 of 500 rows is less than one row"
    ] * warned


def test_a_random_model_must_be_known(tmp_path: Path) -> None:
    assert "model.name: " in problems(tmp_path, "", "model={name: nobody, source: random}")[0]


def test_a_broken_local_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{]")
    assert "model.name: " in problems(tmp_path, "", f"model={tmp_path}/m")[0]


def test_what_cannot_fit_is_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, "", "model=Qwen/Qwen2.5-72B-Instruct", "cluster.gpu=V100-16G")
    assert len(found) == 1 and "fit" in found[0]


def test_the_model_s_cache_lies_beside_the_run(tmp_path: Path) -> None:
    assert pinned_plan(tmp_path).job.model_cache == "/runs/.qwen-job-cache"
    assert pinned_plan(tmp_path, model={"cache_dir": "/c"}).job.model_cache == "/c"


def test_the_prepared_data_is_on_the_host_and_on_disk_and_changes_nothing_that_runs(tmp_path: Path) -> None:
    bare, told = plan(tmp_path), plan(tmp_path, "", "data.samples=1000000", "data.tokens_per_sample=300")
    assert bare.run is not None and told.run is not None
    memory = told.run.memory
    assert memory.host["data and page cache"] == memory.disk["prepared data"] == 4 * 300_000_000 + 40_000_000
    assert "prepared data" not in bare.run.memory.disk
    assert told.memory == bare.memory
    assert train_config(told) == train_config(bare)


def test_a_small_shared_memory_is_warned_of_where_the_job_sets_it(tmp_path: Path) -> None:
    cluster = "cluster={gpu: A100-80G, gpus_per_node: 8}"
    found = plan(tmp_path, "", cluster, "kubernetes.shm_size=64Mi").warnings
    assert any(warning.startswith("/dev/shm: ") and "kubernetes.shm_size: 8Gi" in warning for warning in found)
    assert not any("/dev/shm" in warning for warning in plan(tmp_path, "", cluster).warnings)


@pytest.mark.parametrize(("quantity", "size"), [("16Gi", 16 << 30), ("512M", 512_000_000), ("1.5Ki", 1536), ("7", 7)])
def test_kubernetes_quantities(quantity: str, size: int) -> None:
    assert bytes_of(quantity) == size


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "a vision-language model, which cannot be trained"),
        ("Qwen/Qwen3-8B-AWQ", "use the full-precision model, Qwen/Qwen3-8B"),
        ("Qwen/Qwen3.8-Flash-Next", "qwen4_exp"),
    ],
)
def test_an_official_model_that_cannot_be_trained_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        plan(tmp_path, "", f"model={name}")


def test_what_model_will_hold_is_decided_where_there_is_a_choice(tmp_path: Path) -> None:
    hybrid = plan(tmp_path, "", "model=Qwen/Qwen3.5-2B")
    (found,) = [one for one in hybrid.decisions if one.field == "train.export"]
    assert (found.value, train_config(hybrid).export) == ("text", "text") and "original keeps" in found.reason
    original = plan(tmp_path, "", "model=Qwen/Qwen3.5-2B", "train.export=original", "train.max_steps=9")
    assert train_config(original).export == "original"
    assert original.run is not None and original.run.memory.disk["second copy at the end"] == 2 * 1_881_825_088
    assert not [one for one in plan(tmp_path, "").decisions if one.field == "train.export"]
    with pytest.raises(JobError, match=r"train\.export: original is for models with a vision tower.*remove the line"):
        plan(tmp_path, "", "model=Qwen/Qwen3-4B", "train.export=original")


def test_a_v100_is_told_what_linear_attention_costs_there(tmp_path: Path) -> None:
    old, new = (plan(tmp_path, "", "model=Qwen/Qwen3.5-2B", f"cluster.gpu={gpu}") for gpu in ("V100-32G", "A100-80G"))
    (warning,) = [text for text in old.warnings if "linear attention" in text]
    assert "18 layers of linear attention run as torch operations in fp32: about" in warning
    assert old.precision == "fp16" and not [text for text in new.warnings if "linear attention" in text]
