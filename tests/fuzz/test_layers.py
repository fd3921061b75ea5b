"""The doors of YAML layers, --set, hostfiles and paths: right, or refused with the file and the field."""

from __future__ import annotations

import os
import random
import socket
import string
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qwen_job import strict_yaml
from qwen_job.job import load_job
from tests.fuzz.harness import Box, amount, fault, fuzz, judge
from tests.jobs import PINNED

TEXT = yaml.safe_dump(PINNED)
COMMANDS = [("plan", "job.yaml"), ("render", "job.yaml", "-t", "slurm"), ("sweep", "job.yaml")]
BIG = "9" * 5_000
_BOMB = "\n".join(
    ["a0: &a0 [x,x,x,x,x,x,x,x,x]"] + [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
)
_DEEP_BOMB = "a0: &a0 [x]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 5_000))
_WIDE_BOMB = (
    "x: &x {" + ",".join(f"k{i}: 1" for i in range(9_000)) + "}\n" + "\n".join(f"y{i}: *x" for i in range(1_000))
)
WHOLE = {
    "brackets": "[" * 25_000,
    "braces": "{" * 25_000,
    "mixed": "[{a: " * 12_000,
    "closed": "a: " + "[" * 25_000 + "]" * 25_000,
    "dashes": "a:\n" + "- " * 25_000 + "x",
    "questions": "? " * 25_000 + "x",
    "indented": "\n".join(" " * i + f"k{i}:" for i in range(2_000)),
    "bomb": _BOMB,
    "deep bomb": _DEEP_BOMB,
    "wide bomb": _WIDE_BOMB,
    "many": "a: [" + "x," * 2_000_000 + "]",
    "keys": "\n".join(f"k{i}: {i}" for i in range(40_000)),
    "long key": "k" * 1_000_000 + ": 1",
    "long text": "name: " + "x" * 8_000_000,
    "tags": "!!python/object/apply:os.system ['true']",
    "tag bomb": "a: " + "!x " * 20_000,
    "anchors": "a: " + "&x " * 20_000 + "1",
    "self": "a: &a [*a]",
    "documents": "---\n" * 20_000,
    "percent": "%YAML 9.9\n---\na: 1",
    "control": "na\x1bme: 1",
    "nul": "\0",
    "bom": "\ufeff\ufeffname: x",
    "binary": "\x80\x81",
    "merge": "<<: [*x]",
    "empty": "",
    "comment": "# nothing",
    "scalar": "text",
    "quotes": '"' + "\\x1b" * 30_000,
    "block": "a: |" + "\n" * 100_000,
    "tabs": "\t" * 100_000,
}
_NAMES = [f"A{number}" for number in range(9_000)]
# field: value, on top of a job that is right.
VALUES = {
    "digits": f"train: {{seed: {BIG}}}",
    "hex digits": f"train: {{seed: 0x{'f' * 6_000}}}",
    "float": "train: {learning_rate: 1e999}",
    "large float": "train: {learning_rate: 1e308}",
    "epochs": "train: {num_train_epochs: 1e308}",
    "warmup": "train: {warmup_ratio: 1e-320}",
    "nodes": "cluster: {nodes: 1000000000}",
    "nodes beyond": "cluster: {nodes: 99999999999999999999999}",
    "gpus": "cluster: {gpus_per_node: 1000000000}",
    "batch": "train: {per_device_train_batch_size: 1000000000}",
    "accumulation": f"train: {{gradient_accumulation_steps: {10**18}}}",
    "length": f"data: {{train: /x, max_length: {10**15}}}",
    "steps": f"train: {{max_steps: {10**19}}}",
    "memory": "cluster: {gpu: {name: X, memory_gib: 1e308, compute_capability: 8.0}}",
    "small memory": "cluster: {gpu: {name: X, memory_gib: 1e-300, compute_capability: 8.0}}",
    "capability": "cluster: {gpu: {name: X, memory_gib: 80, compute_capability: 1e300}}",
    "sweep": "sweep: {train.seed: [" + ",".join(map(str, range(2_000))) + "]}",
    "sweep of many values": f"sweep: {{train.seed: {list(range(1_000))}}}\nenv: {dict.fromkeys(_NAMES, 'b')}",
    "sweep product": "sweep: {" + ",".join(f"train.x{i}: [1,2,3,4,5,6,7,8,9]" for i in range(60)) + "}",
    "sweep path": "sweep: {" + ".".join("a" * 2_000) + ": [1]}",
    "sweep huge": f"sweep: {{train.seed: [{BIG}, 1]}}",
    "sweep deep": "sweep: {train.seed: [" + "[" * 50 + "]" * 50 + "]}",
    "env": "env: {A: '" + "x" * 200_000 + "'}",
    "env many": "env: {" + ",".join(f"A{i}: b" for i in range(20_000)) + "}",
    "variables": "uses_env: [X]\nenv: {A: '" + "${X}" * 100_000 + "'}",
    "pod": "kubernetes: {pod: " + "{a: " * 300 + "1" + "}" * 300 + "}",
    "unknown": "\n".join(f"field{i}: 1" for i in range(5_000)),
    "wrong": "data: {train: [" + ",".join("{path: 1}" for _ in range(5_000)) + "]}",
    "hosts": "hostfile: {hosts: ['gpu[1-99999999]']}",
    "hosts again": "hostfile: {hosts: ['" + ",".join(["gpu[1-90000]"] * 2_000) + "']}",
    "hosts lists": "hostfile: {hosts: [" + ",".join(["'g[1-90000]'"] * 500) + "]}",
    "hosts product": "hostfile: {hosts: ['" + "g[1-9]" * 40 + "']}",
    "hosts zeros": f"hostfile: {{hosts: ['g[{'0' * 9_000}1-99999]']}}",
    "hosts digits": f"hostfile: {{hosts: ['g[1-{BIG}]']}}",
    "hosts brackets": "hostfile: {hosts: ['" + "[" * 20_000 + "']}",
    "time": f"slurm: {{time: '{BIG}:00:00'}}",
    "time days": f"slurm: {{time: '{BIG}d'}}",
    "array": "name: " + "x" * 100_000,
    "output": "output: /" + "x/" * 50_000,
    "output long": "output: /" + "x" * 5_000,
    "output tilde": "output: ~nobody-at-all/x",
    "key with escapes": '"na\\x1b]0;pwned\\x07\\u202eme\\n": 1',
    "value with escapes": 'model: {name: x, source: "\\x1b[2J\\x9b1m\\u2066"}',
    "name with escapes": 'name: "a\\x1b[2J"',
    "field of text": 'train: {"\\u202elearning_rate": 1}',
}  # fmt: skip


def _job(folder: Path, text: str) -> None:
    (folder / "job.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("name", WHOLE)
def test_a_hostile_file_is_refused_with_its_place(box: Box, tmp_path: Path, name: str) -> None:
    _job(tmp_path, WHOLE[name])
    outcome = box.command("plan", "job.yaml", folder=tmp_path)
    judge(outcome, name, places=["job.yaml"])
    assert outcome.code == 3


@pytest.mark.parametrize("name", VALUES)
def test_a_hostile_value_is_planned_or_refused_with_its_field(box: Box, tmp_path: Path, name: str) -> None:
    _job(tmp_path, TEXT)
    (tmp_path / "over.yaml").write_text(VALUES[name])
    for words in (("plan",), ("render", "-t", "slurm"), ("render", "-t", "hostfile")):
        outcome = box.command(*words, "-f", "job.yaml", "-f", "over.yaml", folder=tmp_path, environ={"X": "y" * 9_000})
        judge(outcome, f"{words} {name}", places=["over.yaml", "job.yaml", "memory", "hosts", "fit"], script=True)


SETS = [
    "x", "=", "a=", ".=1", "[=1", "a[0]=1", "a..b=1", "train=[", "train=" + "[" * 25_000, "a." * 25_000 + "b=1",
    "train.seed=" + BIG, "train.seed=0x" + "f" * 9_000, "train.learning_rate=1e400", "train.learning_rate=.inf",
    "train.seed=!!python/name:os.system", "train.seed=&a [*a]", "name=\x1b[2J", "\x1bname=1", "\u202ename=x",
    "data.train[99999999999999999999]=1", "data.train[-1]=1", "env.A=" + "${X}" * 50_000, "sweep.train.seed=[1,1]",
    "cluster.nodes=1000000000", "hostfile.hosts=[g[1-3]]", "hostfile.hosts='g[1-99999999]'", "name=" + "x" * 100_000,
    "kubernetes.pod=" + "{a: " * 200 + "}" * 200, "kubernetes.pod" + ".a" * 62 + "=1", "train.seed=", "name=~",
    "env[A.B]=x", "env." + "x" * 100_000 + "=1", "train.seed=" + "- " * 20_000, "name=\ud800", "*=1", "name=*x",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(SETS)))
def test_a_hostile_set(box: Box, tmp_path: Path, number: int) -> None:
    _job(tmp_path, TEXT)
    outcome = box.command("plan", "job.yaml", "--set", SETS[number], folder=tmp_path)
    judge(outcome, SETS[number], places=["--set", "job.yaml", "memory", "fit"])


_FIELDS = st.sampled_from(
    ["name", "output", "model", "model.name", "model.source", "data", "data.train", "data.train[0].path", "data.eval",
     "data.max_length", "cluster", "cluster.nodes", "cluster.gpus_per_node", "cluster.gpu", "cluster.interconnect",
     "train", "train.seed", "train.learning_rate", "train.num_train_epochs", "train.max_steps", "train.save_steps",
     "train.per_device_train_batch_size", "train.gradient_accumulation_steps", "train.optim", "deepspeed.zero_stage",
     "slurm.time", "slurm.sbatch.x", "slurm.setup", "slurm.partition", "kubernetes.pod", "kubernetes.volumes",
     "kubernetes.shm_size", "hostfile.hosts", "hostfile.port", "retry.grace", "env", "env.A", "uses_env", "sweep",
     "sweep.train.seed", "template_dirs", "container.image", "evaluate", "evaluate.data", "train.warmup_steps"]
)  # fmt: skip
_SCALARS = st.one_of(
    st.sampled_from(
        ["0", "-1", "1", "10**9", "1000000000", str(2**63), str(-(2**64)), "1e308", "-1e308", "1e-320", "0.1", "true",
         "null", "~", "''", "auto", "none", "bf16", "[]", "{}", "[1, 2]", "{a: b}", "{path: x}", "/dev/zero", "..", "/",
         "[[[]]]", "'${X}'", "'$${X}'", "'${'", "1d", "99:99:99", "1Gi", "0x10", "0o17", ".nan", "2024-01-01", "1_000"]
    ),
    st.text(max_size=20).map(lambda text: yaml.safe_dump(text).removesuffix("\n...\n").strip()),
    st.floats().map(str),
    st.integers().map(str),
)  # fmt: skip


@given(st.lists(st.tuples(_FIELDS, _SCALARS), min_size=1, max_size=4))
@fuzz(500)
def test_any_values_in_any_fields(box: Box, job: Path, pairs: list[tuple[str, str]]) -> None:
    sets = [word for field, value in pairs for word in ("--set", f"{field}={value}")]
    outcome = box.command("render", str(job), "-t", "slurm", *sets)
    judge(
        outcome,
        sets,
        places=[field.split(".")[0].split("[")[0] for field, _ in pairs] + ["job.yaml", "memory"],
        script=True,
    )


@given(st.integers(0, 2**32))
@fuzz(400)
def test_a_damaged_file(box: Box, job: Path, seed: int) -> None:
    dice = random.Random(seed)
    text = list(TEXT + "sweep: {train.seed: [1, 2]}\nenv: {A: '1'}\nslurm: {time: 2h, sbatch: {qos: x}}\n")
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(text))
        match dice.randrange(5):
            case 0:
                text[at] = dice.choice(string.printable + "\x1b\x00\x9b\u202e\ufeff好")
            case 1:
                del text[at : at + dice.randint(1, 30)]
            case 2:
                text[at:at] = dice.choice(
                    ["[", "{", "- ", "\n", "\t", "&a ", "*a", "!!x ", "? ", "|\n", "'", '"', "#", ": "]
                )
            case 3:
                text[at:at] = text[at : at + dice.randint(1, 80)]
            case 4:
                text[at : at + 3] = dice.choice(["1e999", "9" * 40, ".nan", "~", "null", "[]", "{}"])
        text = text or ["x"]
    path = job.with_name("damaged.yaml")
    path.write_bytes("".join(text).encode("utf-8", "surrogatepass"))
    judge(box.command("plan", str(path)), "".join(text), places=["damaged.yaml", "memory", "job"])


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job file that is right."""
    path = tmp_path_factory.mktemp("layers") / "job.yaml"
    path.write_text(TEXT)
    return path


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "null": lambda path: path.symlink_to("/dev/null"),
    "full": lambda path: path.symlink_to("/dev/full"),
    "folder": Path.mkdir,
    "loop": lambda path: path.symlink_to(path),
    "nothing": lambda path: path.symlink_to("nowhere"),
    "large": lambda path: subprocess.run(["truncate", "-s", "1T", path], check=True),
    "socket": _socket,
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 100),
}
PATHS: list[tuple[str, tuple[str, ...]]] = [
    ("job", ("plan", "{}")),
    ("layer", ("plan", "job.yaml", "-f", "{}")),
    ("hosts", ("render", "job.yaml", "-t", "hostfile", "--set", "hostfile.hosts={}")),
    ("templates", ("render", "job.yaml", "-t", "slurm", "--template-dir", "{}")),
    ("template_dirs", ("render", "job.yaml", "-t", "slurm", "--set", "template_dirs=[{}]")),
    ("output", ("render", "job.yaml", "-t", "slurm", "-o", "{}")),
    ("run", ("report", "{}")),
    ("sweep", ("sweep", "{}")),
    ("status", ("status", "{}")),
    ("fit", ("plan", "--fit", "{}")),
    ("data", ("data", "check", "{}")),
    ("train", ("train", "{}")),
    ("init", ("init", "{}")),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", PATHS, ids=lambda where: where[0])
def test_no_kind_of_file_is_waited_for(
    box: Box, tmp_path: Path, kind: str, where: tuple[str, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _job(tmp_path, TEXT)
    path = Path("x\x1bpath")
    KINDS[kind](path)
    words = [word.format(f"./{path}") for word in where[1]]
    if where[0] == "hosts":
        path.rename("plain") if kind != "loop" else path.unlink()
        words = [word.replace("x\x1bpath", "plain") for word in words]
    outcome = box.command(*words, folder=tmp_path, environ={"XDG_STATE_HOME": str(tmp_path / "state")})
    judge(outcome, (words, kind))


def _check(text: str) -> None:
    strict_yaml.check(text)


def test_the_quick_look_misses_no_depth() -> None:
    """What the cheap bound lets through is never deeper than the limit."""
    dice = random.Random(1)
    pieces = ["- ", "? ", "a: ", "[", "{", "]", "}", "\n", " ", "  ", "    ", "x", ",", "'", "\t"]
    for _ in range(amount(3_000)):
        text = "".join(dice.choices(pieces, k=dice.randint(1, 150)))
        try:
            strict_yaml.check(text)
        except (strict_yaml.Excess, yaml.YAMLError):
            continue
        try:
            node = yaml.compose(text, Loader=strict_yaml.Loader)
        except yaml.YAMLError:
            continue
        assert _depth(node) <= strict_yaml.MAX_DEPTH, text


def _depth(node: yaml.Node | None) -> int:
    if isinstance(node, yaml.MappingNode):
        return 1 + max((max(_depth(key), _depth(value)) for key, value in node.value), default=0)
    return 1 + max(map(_depth, node.value), default=0) if isinstance(node, yaml.SequenceNode) else 0


def test_a_file_of_pathological_size_is_still_a_job(tmp_path: Path) -> None:
    """The limits are above what people write."""
    hosts = [f"node{number:05d}" for number in range(10_000)]
    (tmp_path / "job.yaml").write_text(TEXT + yaml.safe_dump({"hostfile": {"hosts": hosts}}))
    assert len(load_job([tmp_path / "job.yaml"]).hostfile.hosts) == 10_000


def test_the_rule_is_the_harness_s(box: Box) -> None:
    assert fault(box.command("plan", "-"), places=["stdin"]) is None
