"""What people write by mistake, and the word that each error must contain: the field, and what to write instead."""

# ruff: noqa: E501 - tables, one case a line
from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel, ValidationError

from qwen_job.cli import cli
from qwen_job.errors import JobError
from qwen_job.job import Job
from qwen_job.job.document import Document
from qwen_job.job.load import load_job
from qwen_job.job.mistakes import problems_of
from qwen_job.render.configs import job_document
from tests.jobs import FIVE_LINES, load, plan, problems, write

TWO_READINGS: list[tuple[str, str, str]] = [
    ("slurm: {time: 24}", "slurm.time", "write 24h, 24m or 24s"),
    ("slurm: {time: '90'}", "slurm.time", "write 90h, 90m or 90s"),
    ("evaluate: {time: 1, data: /a.json}", "evaluate.time", "write 1h, 1m or 1s"),
    ("slurm: {memory: 400}", "slurm.memory", "write 400G or 400M"),
    ("slurm: {memory: '400'}", "slurm.memory", "write 400G or 400M"),
    ("kubernetes: {memory: 200}", "kubernetes.memory", "write it with its unit, e.g. 64Gi"),
    ("kubernetes: {memory: 400GB}", "kubernetes.memory", "did you mean '400G'?"),
    ("kubernetes: {memory: 64 gib}", "kubernetes.memory", "did you mean '64Gi'?"),
    ("retry: {grace: '5:00'}", "retry.grace", "write 5h or 5m"),
    ("retry: {grace: '1:30'}", "retry.grace", "write 1h30m or 1m30s"),
    ("retry: {grace: 5min}", "retry.grace", "did you mean '5m'?"),
    ("retry: {grace: 2 Hours}", "retry.grace", "did you mean '2h'?"),
    ("slurm: {scratch: $TMPDIR}", "slurm.scratch", "write ${TMPDIR} and add TMPDIR to uses_env"),
    ("container: {mounts: ['/data:$HOME/data']}", "container.mounts[0]", "write ${HOME} and add HOME to uses_env"),
    ("local: {python: $HOME/venv/bin/python}", "local.python", "(or write ~)"),
    ("slurm: {scratch: ~nosuchuser/x}", "slurm.scratch", "no such user; write the folder in full"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "field", "word"), TWO_READINGS)
def test_text_that_can_be_read_in_two_ways_is_refused(tmp_path: Path, text: str, field: str, word: str) -> None:
    (found,) = problems(tmp_path, text)
    assert f" {field}: " in found and word in found


def test_a_folder_that_a_shell_would_expand_is_refused(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "", "output=/runs/$USER/tiny")
    assert found.startswith("--set: output: $USER would stay as typed") and "add USER to uses_env" in found


@pytest.mark.parametrize(
    "text", ["slurm: {setup: [cd $HOME/x]}", "env: {A: $B}", "kubernetes: {pod: {a: $HOME/x}}", "slurm: {log_dir: a$b}"]
)
def test_a_dollar_that_names_no_folder_stays(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text) == []


def test_a_tilde_is_the_users_home_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    job = load(
        tmp_path, "slurm: {python: ~/v/bin/python, scratch: ~/s, log_dir: ~/l}\ncontainer: {mounts: ['~/d:/d']}\n"
    )
    assert (job.slurm.python, job.slurm.scratch, job.slurm.log_dir) == (
        "/home/me/v/bin/python",
        "/home/me/s",
        "/home/me/l",
    )
    assert job.container.mounts == ["/home/me/d:/d"]


@pytest.mark.parametrize(
    ("written", "readings"),
    [("12:00", "write 12h or 12m"), ("90:00", "write 90h or 90m"), ("1:30", "write 1h30m or 1m30s")],
)
def test_a_time_limit_of_two_parts_is_planned_with_both_readings(tmp_path: Path, written: str, readings: str) -> None:
    found = [one for one in plan(tmp_path, f"slurm: {{time: '{written}'}}").warnings if one.startswith("slurm.time:")]
    assert f"slurm.time: {written} is read as sbatch reads it, as minutes and seconds; {readings} to say which" in found


@pytest.mark.parametrize("written", ["12h", "12:00:00", "1-12", "1-12:30"])
def test_a_time_limit_with_one_reading_needs_no_warning(tmp_path: Path, written: str) -> None:
    assert not [one for one in plan(tmp_path, f"slurm: {{time: '{written}'}}").warnings if "sbatch reads" in one]


@pytest.mark.parametrize(("written", "gpu", "other"), [("A100", "A100-80G", "A100-40G"), ("v100", "V100-32G", "V100-16G")])  # fmt: skip
def test_a_gpu_of_two_sizes_is_named_in_the_plan(tmp_path: Path, written: str, gpu: str, other: str) -> None:
    found = [one for one in plan(tmp_path, "", f"cluster.gpu={written}").warnings if "known, too" in one]
    assert found == [f"cluster.gpu: {written} is planned as {gpu}; {other} is known, too: write which one"]


@pytest.mark.parametrize("written", ["A100-80G", "NVIDIA A100-SXM4-80GB", "H100", "CPU"])
def test_a_gpu_of_one_size_needs_no_warning(tmp_path: Path, written: str) -> None:
    assert not [one for one in plan(tmp_path, "", f"cluster.gpu={written}").warnings if "known, too" in one]


@pytest.mark.parametrize(
    ("written", "seconds"), [("36h", 129600), ("90s", 90), ("90:00", 5400), ("2-00:00:01", 172801)]
)
def test_the_job_yaml_of_a_run_reads_the_same_time_limit(tmp_path: Path, written: str, seconds: int) -> None:
    document = job_document(plan(tmp_path, f"slurm: {{time: {written!r}}}"))
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(document), "utf-8")
    assert load_job([path]).slurm.time == load(tmp_path, f"slurm: {{time: {written!r}}}").slurm.time == seconds


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"), ("qwen3-8b", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen2.5-7b-Instruct", "Qwen/Qwen2.5-7B-Instruct"), ("qwen/qwen3-8b", "Qwen/Qwen3-8B"),
        ("Qwen/Not-Known-7b", "Qwen/Not-Known-7b"), ("acme/Qwen3-8b", "acme/Qwen3-8b"),
    ],
)  # fmt: skip
def test_a_name_is_completed_and_spelt_as_its_hub_spells_it(tmp_path: Path, written: str, name: str) -> None:
    job = load(tmp_path, "", f"model={written}")
    assert job.model.name == name and job_document(plan(tmp_path, "", f"model={written}"))["model"] == {"name": name}


def test_an_unknown_model_gets_at_most_three_suggestions(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "", "model=Instruct")
    assert "did you mean Qwen/" in found and found.count("Qwen/") == 3


MISSING_HERE: list[tuple[str, str, str]] = [
    ("model=Qwen2.5-7B-Instrukt", "model.name", "did you mean Qwen/Qwen2.5-7B-Instruct"),
    ("model=Llama", "model.name", "'Llama' is not known: 'qwen-job docs models' lists all (or"),
    ("model=Qwen2.5-VL-7B-Instruct", "model.name", "a vision-language model"),
    ("model=./nope", "model.name", "no such folder; write the path that the nodes use"),
    ("data=nope.json", "data.train[0].path", "no such file"),
    ("data={train: /d.json, eval: [../nope.json]}", "data.eval[0].path", "no such file"),
    ("evaluate={data: nope.json}", "evaluate.data", "no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("sets", "field", "word"), MISSING_HERE)
def test_what_is_missing_here_is_an_error(tmp_path: Path, sets: str, field: str, word: str) -> None:
    (found,) = problems(tmp_path, "", sets)
    assert f"{field}: " in found and word in found


MISPLACED: list[tuple[str, str, str]] = [
    ("slurm: {sbatch: {mail_type: END}}", "slurm.sbatch.mail_type", "write mail-type"),
    ("slurm: {sbatch: {--mail_type: END}}", "slurm.sbatch.--mail_type", "write mail-type"),
    ("slurm: {mail-type: END}", "slurm.mail-type", "write slurm.sbatch.mail-type"),
    ("slurm: {mail_user: a@b}", "slurm.mail_user", "write slurm.sbatch.mail-user"),
    ("slurm: {exclude: n7}", "slurm.exclude", "write slurm.sbatch.exclude"),
    ("slurm: {mem: 4G}", "slurm.mem", "write slurm.memory"),
    ("slurm: {nodes: 2}", "slurm.nodes", "write cluster.nodes"),
    ("slurm: {gres: 'gpu:8'}", "slurm.gres", "write cluster.gpus_per_node"),
    ("slurm: {modules: cuda/12}", "slurm.modules", "write [cuda/12]"),
    ("time: 24h", "time", "write slurm.time"),
    ("epochs: 3", "epochs", "write train.num_train_epochs"),
    *((f"train: {{{name}: 4}}", f"train.{name}", "'model_max_length' here") for name in ("max_seq_len", "max_length", "seq_length", "cutoff_len", "block_size")),
    ("data: {train: /d.json, max_seq_len: 4}", "data.max_seq_len", "write train.model_max_length"),
    ("max_seq_len: 4", "max_seq_len", "write train.model_max_length"),
    ("train: {memory_save_steps: 'off'}", "train.memory_save_steps", "expected auto or a whole number, not 'off' (Steps between"),
    ("train: {memory_save_steps: -1}", "train.memory_save_steps", "-1 is too small: write 0 or more (Steps between"),
    ("cluster: {gpu: A100-80G, nodes: 0}", "cluster.nodes", "0 is too small: write 1 or more (Number of nodes)"),
    ("train: {num_train_epochs: -1}", "train.num_train_epochs", "-1 is too small: write more than 0 (Number of"),
    ("train: {adam_beta1: 1}", "train.adam_beta1", "1.0 is too large: write 0 or more and less than 1"),
    ("data: {train: /d.json, eval_split: 2}", "data.eval_split", "2 is too large: write 0 or more and less than 1"),
    ("data: {train: [{path: /d.json, weight: 0}]}", "data.train[0].weight", "write more than 0 and 1000 or less"),
    ("hostfile: {port: 80}", "hostfile.port", "80 is too small: write a number from 1024 to 65535"),
    ("deepspeed: {zero_stage: 4}", "deepspeed.zero_stage", "4 is too large: write a number from 0 to 3"),
    ("cluster: {gpu: A100-80G, memory_gib: .inf}", "cluster.memory_gib", ".inf is not a finite number"),
    ("train: {torch_compile: maybe}", "train.torch_compile", "expected auto, true or false, not 'maybe' (Compile the layers"),
    ("train: {num_train_epochs: 'few'}", "train.num_train_epochs", "expected a number, not 'few'"),
    ("data: {train: []}", "data.train", "needs at least 1 item, not []"),
    ("notify: {kind: slack, url: $HOOK}", "notify[0].url", "write env:HOOK"),
    ("notify: {kind: slack, url: '${HOOK}'}", "notify[0].url", "write env:HOOK"),
    ("batch_size: 3", "batch_size", "write train.per_device_train_batch_size"),
    ("gpus: 8", "gpus", "write cluster.gpus_per_node"),
    ("nodes: 8", "nodes", "write cluster.nodes"),
    ("output_dir: /x", "output_dir", "write output"),
    ("dataset: /x", "dataset", "write data.train"),
    ("kubernetes: {pvc: a}", "kubernetes.pvc", "a volume of kubernetes.volumes, e.g. ["),
    ("kubernetes: {image: a}", "kubernetes.image", "write image at the top level"),
    ("kubernetes: {secret_env: wandb}", "kubernetes.secret_env", "{HF_TOKEN: SECRET/KEY}"),
    ("kubernetes: {secret_env: {WANDB_API_KEY: wandb}}", "kubernetes.secret_env.WANDB_API_KEY", "{HF_TOKEN: SECRET/KEY}"),
    ("sweep: {learning_rate: [1e-5, 2e-5]}", "sweep.learning_rate", "'sweep.train.learning_rate'"),
    ("sweep: {epochs: [1, 2]}", "sweep.epochs", "write sweep.train.num_train_epochs"),
    ("lora_r: 8", "lora_r", "fine-tunes all weights"),
    ("lora: {r: 8}", "lora", "is not offered: qwen-job fine-tunes all weights; remove it"),
    ("qlora: true", "qlora", "fine-tunes all weights"),
    ("peft: {r: 8}", "peft", "fine-tunes all weights"),
    ("load_in_4bit: true", "load_in_4bit", "fine-tunes all weights"),
    ("model: {name: a/b, load_in_4bit: true}", "model.load_in_4bit", "fine-tunes all weights"),
    ("train: {load_in_4bit: true}", "train.load_in_4bit", "fine-tunes all weights"),
    ("train: {report_to: 'wandb, tensorboard'}", "train.report_to", "write a list: [wandb, tensorboard]"),
    ("hostfile: {ssh_options: -p 2222}", "hostfile.ssh_options", "write [-p, '2222']"),
    ("hostfile: {ssh_options: [-p, 2222]}", "hostfile.ssh_options[1]", "write it in quotes: '2222'"),
    ("container: {runtime: singularity}", "container.runtime", "write apptainer"),
    ("container: {runtime: enroot}", "container.runtime", "write pyxis"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "field", "word"), MISPLACED)
def test_a_field_in_the_wrong_place_is_told_the_right_one(tmp_path: Path, text: str, field: str, word: str) -> None:
    base = "".join(line for line in FIVE_LINES.splitlines(True) if line.partition(":")[0] != text.partition(":")[0])
    with pytest.raises(JobError) as caught:
        load_job([write(tmp_path, text, base=base)])
    assert [problem.field for problem in caught.value.problems] == [field]
    assert "unknown field; is not" not in caught.value.problems[0].message
    assert word in caught.value.problems[0].message


UNKNOWN: list[tuple[str, str, str]] = [
    ("data.max_length=512", "data.max_length", "write train.model_max_length"),
    ("model.path=/x", "model.path", "write model.name, with / or ./ in front"),
    ("cluster.gpus=8", "cluster.gpus", "write cluster.gpus_per_node"),
    *((f"cluster.gpu={name}", "cluster.gpu", f"{{name: {name}, memory_gib: N, compute_capability: N.N}}")
      for name in ("B200", "A6000", "T4", "A10", "L40", "MI300X", "RTX3090", "RTX 6000 Ada", "GeForce RTX 3090")),
    *((f"cluster.gpu={name}", "cluster.gpu", "known: A100-40G, A100-80G") for name in ("B200", "A6000", "RTX-3090", "RTX3090")),
    ("cluster.gpu=H10O", "cluster.gpu", "did you mean H100-80G"),
    ("data.eval_split=2%", "data.eval_split", "not '2%'; write 0.02"),
    ("train.weight_decay=12.5 %", "train.weight_decay", "; write 0.125"),
    ("cluster.memory_gib=512G", "cluster.memory_gib", "not '512G'; write 512"),
    ("cluster.memory_gib=1.5TiB", "cluster.memory_gib", "; write 1536"),
    ("cluster.memory_gib=512M", "cluster.memory_gib", "; write 0.5"),
    ("train.model_max_length=2k", "train.model_max_length", "not '2k'; write 2048"),
    ("train.max_steps=2k", "train.max_steps", "; write 2000"),
    ("deepspeed=ds_config_zero3.json", "deepspeed", "; write deepspeed.zero_stage: 3;"),
    ("deepspeed=ds.json", "deepspeed", "; write deepspeed.zero_stage: N;"),
    ("kubernetes.queue=kue:team", "kubernetes.queue", "did you mean 'kueue:team'?"),
    ("kubernetes.queue=volcanoo", "kubernetes.queue", "did you mean 'volcano'?"),
]  # fmt: skip


@pytest.mark.parametrize(("sets", "field", "word"), UNKNOWN)
def test_a_value_that_is_not_known_is_told_what_is(tmp_path: Path, sets: str, field: str, word: str) -> None:
    (found,) = problems(tmp_path, "", sets)
    assert found.startswith(f"--set: {field}: ") and word in found


@pytest.mark.parametrize("name", ["notify.0.kind=slack", "hostfile.hosts[0]=a", "container.mounts.0=/x"])
def test_an_item_of_a_list_that_is_empty_is_told_to_write_the_list(tmp_path: Path, name: str) -> None:
    (found,) = problems(tmp_path, "", name)
    assert "has no items yet; write it whole: " in found


VALUES: list[object] = [-1, 0, 1e30, float("nan"), float("inf"), True, None, "", "x" * 600, [], {}, [[]], {"x": 1}, 2.5]


def _fields(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        yield (*above, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, (*above, name))


@pytest.mark.parametrize("section", list(Job.model_fields))
def test_no_problem_has_a_sentence_of_the_library_that_validates(section: str) -> None:
    """Every field gets every wrong value; each problem is in our words (about 2 s for all sections together)."""
    seen = 0
    for path in [path for path in _fields(Job) if path[0] == section]:
        for value in VALUES:
            whole = yaml.safe_load(FIVE_LINES)
            inner = whole
            for part in path[:-1]:
                inner[part] = inner[part] if isinstance(inner.get(part), dict) else {}
                inner = inner[part]
            inner[path[-1]] = value
            try:
                Job.model_validate(whole)
            except ValidationError as error:
                for problem in problems_of(error, Document(whole)):
                    seen += 1
                    assert not re.search("(?i)input should|should be|should have|valid (string|dict)", problem.message)
    assert seen


INDENTED: list[tuple[str, int, str]] = [
    ("train:\n\tseed: 1\n", 7, "a tab; indent with spaces (line 7 is 'seed: 1')"),
    ("train:\n  seed: 1\n   bf16: true\n", 8, "indent the line like its neighbours"),
    ("train:\n   seed: 1\n  bf16: true\n", 8, "indented differently from the lines above it (line 8 is 'bf16: true')"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "word"), INDENTED)
def test_a_wrong_indent_shows_its_line(tmp_path: Path, text: str, line: int, word: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found.startswith(f"job.yaml:{line}:") and word in found


def test_a_misspelt_required_field_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(FIVE_LINES.replace("model:", "modle:"), "utf-8")
    with pytest.raises(JobError) as caught:
        load_job([path])
    assert [(one.field, one.message) for one in caught.value.problems] == [
        ("modle", "unknown field; did you mean 'model'?")
    ]


@pytest.mark.parametrize("command", [["plan"], ["render", "-t", "slurm"]])
@pytest.mark.parametrize("job", [[], ["job.yaml"]])
def test_a_value_in_a_separate_word_is_told_to_join_the_field(command: list[str], job: list[str]) -> None:
    result = CliRunner().invoke(cli, [*command, *job, "--set", "train.learning_rate", "1e-5"])
    assert isinstance(result.exception, JobError)
    assert "--set: train.learning_rate: write it as field=value in one word" in str(result.exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--drop", "too_long"], "did you mean 'long_sample'?"), (["--keep", "max-length"], "'long_sample'?"),
        (["--drop", "secrt"], "did you mean 'secret'?"), (["--hold-out", "2%", "h.jsonl"], "is a percentage; write 0.02"),
        (["--hold-out", "x%", "h.jsonl"], "'x%' is not a valid float range"),
    ],
)  # fmt: skip
def test_a_rule_or_share_of_data_clean_in_other_words_is_told_ours(tmp_path: Path, words: list[str], said: str) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"messages": []}\n', "utf-8")
    result = CliRunner().invoke(cli, ["data", "clean", str(source), str(tmp_path / "b.jsonl"), *words])
    assert said in f"{result.stderr}{result.exception}" and not (tmp_path / "b.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launch"], "write 'qwen-job submit job.yaml --target TARGET'"), (["start"], "write 'qwen-job submit job.yaml"),
        (["validate"], "write 'qwen-job plan job.yaml'"), (["run"], "write 'qwen-job submit job.yaml --target local'"),
        (["help"], "write 'qwen-job --help'"), (["render", "-t", "k8s"], "did you mean 'kubernetes'?"),
        (["submit", "-t", "k8s"], "did you mean 'kubernetes'?"), (["render", "-t", "ssh"], "did you mean 'hostfile'?"),
        (["init", "list"], "did you mean '--list'?"), (["init", "demo"], "did you mean '--from demo'?"),
    ],
)  # fmt: skip
def test_a_command_of_another_program_is_told_ours(words: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, words)
    assert result.exit_code != 0 and said in f"{result.stderr}{result.exception}"


def test_an_evaluation_of_a_job_that_holds_nothing_out_is_refused_before_the_plan(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "evaluate: {}")
    assert "evaluate.data: is required because nothing is held out: name conversations" in found
    assert problems(tmp_path, "evaluate: {}", "data={train: /d.json, eval_split: 0.1}") == []
