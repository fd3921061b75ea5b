"""The command line as a user meets it: real processes, their words and their exit codes."""

# ruff: noqa: E501 - tables, one case a line
from __future__ import annotations

import importlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from qwen_job.cli import COMMANDS, cli
from qwen_job.render.engine import TEMPLATES
from tests.jobs import FIVE_LINES, PINNED, write

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.stem for path in (ROOT / "configs" / "jobs").glob("*.yaml"))
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


def run(folder: Path, *words: str, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qwen_job", *words],
        cwd=folder, env={**ENV, **env}, capture_output=True, text=True, input=stdin, check=False, timeout=60,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


HEAVY = ("torch", "transformers", "kubernetes", "numpy", "deepspeed", "tokenizers")


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--help"], (*HEAVY, "pydantic", "jinja2", "yaml")),
        (["exit-codes"], (*HEAVY, "pydantic", "jinja2", "yaml")),
        (["plan"], HEAVY),
        (["render", "-t", "slurm"], HEAVY),
        (["render", "-t", "kubernetes", "--set", "image=x", "--set", "output=/data/run"], HEAVY),
        (["schema"], HEAVY),
    ],
    ids=lambda value: " ".join(value[:3]),
)
def test_nothing_heavy_is_imported(folder: Path, words: list[str], absent: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom qwen_job.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    print(sorted(sys.modules), file=sys.stderr)\n    sys.exit(end.code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=folder, env=ENV, capture_output=True, text=True)
    modules = done.stderr.splitlines()[-1]
    assert done.returncode == 0, done.stderr
    assert not [name for name in absent if f"'{name}'" in modules]


def test_a_render_starts_without_what_it_does_not_need(folder: Path) -> None:
    code = (
        "import sys\nfrom qwen_job.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    from qwen_job.facts import train_settings as settings\n    from qwen_job.job import Job\n    from qwen_job.job.model import Train\n"
        "    read = settings.facts.cache_info().misses + settings.schedulers.cache_info().misses\n"
        "    built = [model.__name__ for model in (Job, Train) if model.__pydantic_complete__]\n"
        "    print(end.code, read, built, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "render", "-t", "slurm"]
    done = subprocess.run(command, cwd=folder, env=ENV, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "0 0 ['Job']", done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_in_the_list_is_the_command_s_own(name: str) -> None:
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert command.name == name
    assert command.get_short_help_str(limit=200) == COMMANDS[name][1]


def walk(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    found = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found.append(((*path, name), command))
        found += walk(command, (*path, name)) if isinstance(command, click.Group) else []
    return found


@pytest.mark.parametrize(
    ("path", "command"), walk(cli), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_and_option_is_described(path: tuple[str, ...], command: click.Command) -> None:
    assert command.help, path
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["rendr"], 2, "no such command: 'rendr'; did you mean 'render'?"),
        (["render", "-t", "slrm"], 2, "'slrm' is not one of slurm"),
        (["render", "-t", "slurm", "--frce"], 2, "--force"),
        (["render"], 2, "Missing option '-t' / '--target'. Choose from: slurm, kubernetes"),
        (["exit-codes", "77"], 2, "Got unexpected extra argument (77); see 'qwen-job exit-codes --help'"),
        (["docs", "trainng"], 2, "no such topic: 'trainng'; did you mean 'training'?"),
        (["docs", "zzzz"], 2, "'qwen-job docs' lists all"),
        (["templates", "export", "t", "zzzz"], 2, "'qwen-job templates list' lists all"),
        (["resume", "my-run"], 2, "again: a run resumes from its newest checkpoint"),
        (["zzzz"], 2, "no such command: 'zzzz'; 'qwen-job --help' lists all"),
        (["data", "chek"], 2, "No such command 'chek'. Did you mean 'check'?"),
        (["model", "push", "nosuch", "hf:a/b"], 9, "nosuch: no such folder; give a finished run's folder"),
        (["render", "nosuch.yaml", "-t", "slurm"], 5, "error: nosuch.yaml: no such file; 'qwen-job init' writes"),
        (["render", ".", "-t", "slurm"], 5, "error: .: this is a folder"),
        (["render", "-t", "slurm", "-o", "/proc/nothing/x"], 5, "cannot be written"),
        (["render", "-t", "slurm", "--template-dir", "nosuch"], 2, "does not exist"),
        (["plan", "--set", "cluster.gpus_per_node=0"], 3, "error: --set: cluster.gpus_per_node: 0 is too small: write 1 or more"),
        (["plan", "--set", "train.bf16=true", "--set", "cluster.gpu=V100-32G"], 3, "has no bf16"),
        (["plan", "--set", "model={name: nobody, source: random}"], 3, "model.name: "),
        (["plan", "--set", "deepspeed={zero_stage: 3, config: {zero_optimization: {stage: 2}}}"], 3, "contradicts"),
        (["plan", "--set", "nonsense"], 3, "error: --set: nonsense: write it as field=value"),
        (["render", "-t", "local", "--set", "cluster.nodes=2"], 3, "cluster.nodes: 2 nodes, but this machine"),
        (["render", "-t", "hostfile"], 3, "hostfile.hosts: is empty"),
        (["templates", "export", "t", "slurm/jb.sbatch.j2"], 2, "did you mean 'slurm/job.sbatch.j2'?"),
        (["init"], 5, "job.yaml: already exists"),
        (["submit", "-t", "hostfile"], 2, "not one of local, slurm, kubernetes: write the files with 'qwen-job render -t"),
        (["submit", "-t", "ssh"], 2, "then run 'bash DIR/launch.sh'"),
        (["init", "other.yaml", "--from", "dmo"], 2, "--from: there is no example 'dmo'; did you mean demo?"),
        (["init", "other.yaml", "--from", "72b"], 2, "did you mean qwen2.5-72b-h100-4x8, qwen2.5-72b-h100-8x8"),
        (["init", "other.yaml", "--from", ""], 2, "'qwen-job init --list' lists them"),
        (["init", "/proc/x.yaml"], 5, "/proc/x.yaml: cannot be written"),
        (["completion", "tcsh"], 2, "'tcsh' is not one of"),
    ],
)  # fmt: skip
def test_bad_input_gets_its_code_and_one_message(folder: Path, words: list[str], code: int, message: str) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*")}
    done = run(folder, *words)
    assert done.returncode == code and message in done.stderr and done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith(("warning: ", "note: "))]
    assert line.startswith("error: ") and "internal error" not in line
    assert {path: path.read_bytes() for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    "words",
    [
        ["chat", ".", "--temperature"],
        ["chat", ".", "--top-p"],
        ["data", "prepare", "x.json", "--tokenizer", ".", "--output", "y", "--weight"],
        ["watch", "--interval"],
    ],
)
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_an_option_takes_finite_numbers_only(folder: Path, words: list[str], value: str) -> None:
    done = run(folder, *words, value)
    assert done.returncode == 2 and words[-1] in done.stderr and "Traceback" not in done.stderr


def test_a_seed_beyond_64_bits_is_refused(folder: Path) -> None:
    done = run(folder, "chat", ".", "--seed", str(2**64))
    assert done.returncode == 2 and "--seed" in done.stderr


@pytest.mark.parametrize("field", ["adam_beta1", "adam_beta2"])
def test_a_moment_that_never_moves_is_refused(folder: Path, field: str) -> None:
    done = run(folder, "plan", "--set", f"train.{field}=1")
    assert done.returncode == 3 and f"train.{field}" in done.stderr


def test_invalid_yaml_is_an_invalid_job(folder: Path) -> None:
    (folder / "job.yaml").write_text("a: [\n")
    done = run(folder, "plan")
    assert done.returncode == 3 and done.stderr.startswith("error: job.yaml:2:1: invalid YAML: ")


def test_without_a_job_render_says_how_to_make_one(tmp_path: Path) -> None:
    done = run(tmp_path, "render", "--target", "slurm")
    assert done.returncode == 5 and "no job.yaml in this folder; create one with 'qwen-job init'" in done.stderr


def test_init_plan_render_is_a_way_that_works(tmp_path: Path) -> None:
    assert run(tmp_path, "init").returncode == 0
    assert run(tmp_path, "plan").returncode == 0
    assert run(tmp_path, "render", "-t", "slurm").stdout.startswith("#!/bin/bash -p\n")


def test_init_asks_nothing_and_lists_the_examples(tmp_path: Path) -> None:
    listed = run(tmp_path, "init", "--list")
    assert not list(tmp_path.iterdir())
    assert [line.split()[0] for line in listed.stdout.splitlines()] == EXAMPLES
    assert run(tmp_path, "init").stderr.endswith(listed.stdout)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_can_be_started_from(tmp_path: Path, example: str) -> None:
    assert run(tmp_path, "init", "--from", example).returncode == 0
    assert run(tmp_path, "plan", "--json").returncode == 0
    comments = [line.partition("#")[2] for line in (tmp_path / "job.yaml").read_text().splitlines()]
    assert not [text for text in comments if re.search(r"\.\./|configs/|qwen_job/|make demo", text)], "not there"


def test_layers_and_sets_win_in_order(folder: Path) -> None:
    (folder / "a.yaml").write_text("train: {seed: 1, save_steps: 5}\nslurm: {partition: a}\n")
    (folder / "b.yaml").write_text("train: {seed: 2}\n")
    words = ["-f", "a.yaml", "-f", "b.yaml", "job.yaml", "--set", "slurm.partition=c", "--set", "slurm.partition=d"]
    plan = json.loads(run(folder, "plan", *words, "--json").stdout)
    assert (plan["train"]["seed"], plan["train"]["training"]["save_steps"]) == (2, 5)
    assert "#SBATCH --partition=d\n" in run(folder, "render", *words, "-t", "slurm").stdout


def test_json_on_stdout_parses_and_words_are_on_stderr(folder: Path) -> None:
    done = run(folder, "plan", "--json", "--no-hub", "--set", "model=acme/unknown")
    assert json.loads(done.stdout)["parameters"] is None and "\x1b" not in done.stdout
    assert json.loads(run(folder, "schema").stdout)["title"] == "qwen-job job.yaml"
    assert json.loads(run(folder, "schema", "--site").stdout)["title"] == "qwen-job site profile"


def test_warnings_are_words_not_data(folder: Path) -> None:
    done = run(folder, "render", "-t", "slurm", "--set", "model=acme/unknown")
    assert "warning: model.name: acme/unknown" in done.stderr and "warning:" not in done.stdout


def test_a_job_from_stdin(folder: Path) -> None:
    assert (
        run(folder, "render", "-", "-t", "slurm", stdin=FIVE_LINES).stdout
        == run(folder, "render", "-t", "slurm").stdout
    )
    assert run(folder, "plan", "-", stdin="name: [\n").stderr.startswith("error: job.yaml (stdin):2:1: invalid YAML")


def test_stdout_is_the_file(folder: Path) -> None:
    printed = run(folder, "render", "-t", "slurm").stdout
    done = run(folder, "render", "-t", "slurm", "-o", "out")
    assert done.stdout == "out/tiny.sbatch\n" and (folder / "out" / "tiny.sbatch").read_text() == printed
    assert run(folder, "render", "-t", "slurm", "-o", "out").returncode == 0


def test_files_that_differ_are_kept_without_force(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "tiny.sbatch").write_text("mine\n")
    done = run(folder, "render", "-t", "slurm", "-o", "out")
    assert done.returncode == 5 and "--force to replace it" in done.stderr
    assert (folder / "out" / "tiny.sbatch").read_text() == "mine\n"
    assert run(folder, "render", "-t", "slurm", "-o", "out", "--force").returncode == 0
    assert (folder / "out" / "tiny.sbatch").read_text().startswith("#!/bin/bash")


def test_diff_shows_and_writes_nothing(folder: Path) -> None:
    assert run(folder, "render", "-t", "slurm", "-o", "out").returncode == 0
    before = (folder / "out" / "tiny.sbatch").read_bytes()
    assert run(folder, "render", "-t", "slurm", "-o", "out", "--diff").stdout == ""
    changed = run(folder, "render", "-t", "slurm", "-o", "out", "--diff", "--set", "slurm.partition=gpu").stdout
    assert "+#SBATCH --partition=gpu\n" in changed and (folder / "out" / "tiny.sbatch").read_bytes() == before
    assert "+#!/bin/bash" in run(folder, "render", "-t", "slurm", "--diff").stdout
    (folder / "tiny.sbatch").mkdir()
    assert run(folder, "render", "-t", "slurm", "--diff").returncode == 5


def test_an_exported_template_can_be_changed(folder: Path) -> None:
    done = run(folder, "templates", "export", "mine", "slurm/job.sbatch.j2")
    template = folder / "mine" / "slurm" / "job.sbatch.j2"
    assert (
        done.stdout == "mine/slurm/job.sbatch.j2\n"
        and template.read_bytes() == (TEMPLATES / "slurm/job.sbatch.j2").read_bytes()
    )
    template.write_text("#!/bin/bash\necho {{ name | sh }}\n")
    assert run(folder, "render", "-t", "slurm", "--template-dir", "mine").stdout == "#!/bin/bash\necho tiny\n"
    template.write_text("#!/bin/bash\necho {{ name }}\n")
    done = run(folder, "render", "-t", "slurm", "--template-dir", "mine")
    assert done.returncode == 2 and "slurm/job.sbatch.j2:2: prints 'tiny' unquoted" in done.stderr


def test_exporting_all_templates_overwrites_nothing(folder: Path) -> None:
    listed = run(folder, "templates", "list").stdout.split()
    assert len(run(folder, "templates", "export", "mine").stdout.split()) == len(listed) > 5
    assert run(folder, "templates", "export", "mine").returncode == 5
    assert run(folder, "templates", "export", "mine", "--force").returncode == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(folder: Path, shell: str) -> None:
    script = run(folder, "completion", shell).stdout
    assert "_QWEN_JOB_COMPLETE" in script
    program = {"bash": "bash", "zsh": "zsh", "fish": "fish"}[shell]
    if subprocess.run(["which", program], capture_output=True, check=False).returncode == 0:
        subprocess.run([program, "-n"], input=script, text=True, check=True, capture_output=True)


def test_completion_completes(folder: Path) -> None:
    env = {"_QWEN_JOB_COMPLETE": "bash_complete", "COMP_WORDS": "qwen-job rend", "COMP_CWORD": "1"}
    assert run(folder, **env).stdout == "plain,render\n"


def test_the_version_is_the_package_s(folder: Path) -> None:
    from qwen_job import __version__

    assert run(folder, "--version").stdout.startswith(f"qwen-job {__version__}")


def test_the_table_of_exit_codes(folder: Path) -> None:
    text = run(folder, "exit-codes").stdout
    assert re.search(r"^  3  final      [a-z A-Z]+", text, re.MULTILINE)
    assert re.search(r"^160  retryable  [a-z A-Z]+", text, re.MULTILINE)
    assert "137 is SIGKILL" in text and "`" not in text


def test_a_reader_that_goes_away_is_no_fault(folder: Path) -> None:
    write(folder, f"slurm: {{setup: ['# {'x' * 300_000}']}}\n")
    words = [sys.executable, "-m", "qwen_job", "render", "-t", "slurm"]
    process = subprocess.Popen(words, cwd=folder, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    assert process.stdout.read(1) == b"#"
    process.stdout.close()
    said = process.stderr.read().splitlines()
    assert all(line.startswith(b"note: ") for line in said) and process.wait(30) == 141
    process.stderr.close()


def on_a_terminal(folder: Path, *words: str, **env: str) -> bytes:
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "qwen_job", *words],
        cwd=folder,
        env={**ENV, **env},
        stdout=theirs,
        stderr=theirs,
        check=False,
    )
    os.close(theirs)
    text = b""
    try:
        while block := os.read(ours, 65536):
            text += block
    except OSError:  # Linux' way to say that the other side is closed
        pass
    os.close(ours)
    return text


def test_colour_is_for_terminals_that_want_it(folder: Path) -> None:
    assert b"\x1b[" in on_a_terminal(folder, "plan", "nosuch.yaml")
    assert b"\x1b[" not in on_a_terminal(folder, "plan", "nosuch.yaml", NO_COLOR="1")
    assert b"\x1b[" not in on_a_terminal(folder, "plan", "--no-hub", "--set", "model=acme/unknown", NO_COLOR="1")
    assert "\x1b[" not in run(folder, "plan", "nosuch.yaml").stderr


def test_a_bug_says_so_and_shows_more_when_asked(folder: Path) -> None:
    code = "import qwen_job.cli as c, sys; c.cli.main = lambda *a, **k: 1 / 0; c.main([])"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=ENV, capture_output=True, text=True)
    assert done.returncode == 1 and "internal error: ZeroDivisionError" in done.stderr
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**ENV, "QWEN_JOB_DEBUG": "1"}, capture_output=True, text=True
    )
    assert "Traceback" in done.stderr


def test_an_interrupt_ends_as_shells_expect(folder: Path) -> None:
    code = "import qwen_job.cli as c\ndef stop(*a, **k): raise KeyboardInterrupt\nc.cli.main = stop; c.main([])"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=ENV, capture_output=True, text=True)
    assert done.returncode == 130 and "Traceback" not in done.stderr


def test_submit_local_runs_it_and_gives_its_code(folder: Path) -> None:
    python = folder / "python"
    python.write_text('#!/bin/bash\nif [ "$1" = -c ]; then echo 1; exit; fi\nexit 7\n')
    python.chmod(0o755)
    job = {**PINNED, "output": str(folder / "run"), "local": {"python": str(python)}}
    (folder / "pinned.yaml").write_text(json.dumps(job))
    done = run(folder, "submit", "pinned.yaml", "-t", "local")
    assert done.returncode == 7 and (folder / "run" / "train.yaml").exists()


def test_submit_without_slurm_says_so(folder: Path) -> None:
    done = run(folder, "submit", "-t", "slurm", PATH=str(folder))
    assert done.returncode == 5 and "sbatch: not on this machine" in done.stderr
