"""The names of a run's files are spelt in one module; the templates use no others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_job.run import folder
from qwen_job.run.folder import RunFolder, step_name, step_of

PACKAGE = Path(folder.__file__).parents[1]
NAMES = {value for name, value in vars(folder).items() if name.isupper() and isinstance(value, str)}
# Words with other meanings too count only as part of a path.
WORDS = {folder.CHECKPOINTS, folder.PREPARED, folder.MODEL, folder.LAUNCH, folder.LOGS, folder.LEASE, folder.OWNER}
WORDS |= {folder.TOKEN, folder.HEARTBEAT}
# job.yaml is also what a user's own job is called, in the folder where commands run.
# A service account's token is a file of Kubernetes, and states in memory have a folder for each node in /dev/shm.
OTHERS = {(name, folder.JOB) for name in ("cli/init.py", "cli/job_options.py", "launch/find.py")}
OTHERS |= {("node/release.py", folder.TOKEN), ("run/states.py", "node-")}
NUMBERED = re.compile(r"\.?(?:step|node)-")


def spelt(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every string that is, or ends in, the name of one of a run's files."""
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) for part in parts_of_path(node)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in documented:
            continue
        before, _, last = node.value.rpartition("/")
        part = id(node) in parts
        named = last in NAMES - WORDS or (last in WORDS and (part or before in NAMES))
        if (named and " " not in before) or (part and NUMBERED.match(node.value)):
            yield node.lineno, node.value


def parts_of_path(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the right operand of ``path / part`` and the further arguments of ``Path(a, part)``."""
    found: list[ast.expr] = []
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        found = [node.right]
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Path", "PurePosixPath"):
        found = list(node.args[1:])
    for one in found:
        yield from one.values if isinstance(one, ast.JoinedStr) else [one]


def test_no_other_module_spells_a_file_of_a_run() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        for line, text in spelt(ast.parse(path.read_text("utf-8"))):
            if (name, text) not in OTHERS and name != "run/folder.py":
                found.append(f"{name}:{line}: {text!r}: take it from qwen_job/run/folder.py")
    assert found == []


@pytest.mark.parametrize(
    "code", ['x / "done.json"', 'Path(x, "logs")', 'f"{x}/metrics.jsonl"', 'x / f"step-{n}"', '"launch/lease"']
)
def test_the_search_finds_a_name(code: str) -> None:
    assert list(spelt(ast.parse(f"a = {code}")))


@pytest.mark.parametrize("code", ['"read done.json, then"', '"model"', 'x["launch"]', 'x / "other.json"'])
def test_the_search_ignores_other_text(code: str) -> None:
    assert not list(spelt(ast.parse(f"a = {code}")))


def test_the_templates_use_the_same_names() -> None:
    text = "\n".join(path.read_text("utf-8") for path in sorted((PACKAGE / "templates").rglob("*.j2")))
    files = set(re.findall(r"(?<![\w.$*-])([a-z_]+\.(?:jsonl|json|yaml))\b", text))
    assert files <= NAMES | {"values.yaml"}
    in_launch = set(re.findall(r"launch/([a-z_]+)\b", text))
    assert {folder.LEASE, folder.OWNER, folder.ENDS_AT, folder.TOKEN} <= in_launch
    assert f"/{folder.LOGS}/node-" in text
    assert f"/{folder.CHECKPOINTS}/step-" in text


def test_a_checkpoint_is_named_by_its_step() -> None:
    assert step_of(step_name(12)) == 12
    for name in ("step-", "step-1.partial", ".step-1", "step--1", "step-1\n", "step-１"):
        assert step_of(name) is None


def test_a_run_folder_is_made_of_its_names(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.lease == tmp_path / "launch" / "lease"
    assert run.node_log(3) == tmp_path / "logs" / "node-3.log"
    run.launch.mkdir()
    for node in (1, 0):
        run.node_end(node).touch()
    assert list(run.node_ends()) == [run.node_end(0), run.node_end(1)]
