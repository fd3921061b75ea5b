"""Imports agree with the table of rooms in CONTRIBUTING.md, form no cycle, and sit inside functions for a reason only.

Every import counts: at the top of a module, inside a function, and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = CHECKOUT / "qwen_job"
GROUND_FLOOR = "ground floor"
TORCH = {"torch", "deepspeed", "accelerate", "liger_kernel", "fla"}
TORCH_ROOMS = {"train", "infer", "node"}

# Modules of other rooms that import torch, with the reason.
WITH_TORCH = {
    "qwen_job.models.legacy": "torch.load reads pytorch_model.bin; imported inside functions",
    "qwen_job.models.loading": "builds the model of transformers that train/ and infer/ share",
}

# Packages that may be imported inside functions: slow to import or missing, and not needed by every caller.
SLOW = {
    "torch",
    "transformers",
    "deepspeed",
    "liger_kernel",
    "fla",
    "numpy",
    "tokenizers",
    "gigatoken",
    "jsonschema",
    "referencing",
    "psutil",
    "huggingface_hub",
    "modelscope_hub",
    "fsspec",
    "aiohttp",
}
# Any other import inside a function of a room, with the reason. cli/ needs none: a command imports what it runs.
LATE = {
    ("qwen_job.api.job_template", "qwen_job.chat.sandbox"): "Jinja, needed for a template on this machine only",
    ("qwen_job.api.jobs", "qwen_job.api.plan_count"): "the readers of data: importing them takes as long as planning",
    ("qwen_job.api.jobs", "qwen_job.launch.host_lists"): "Slurm, needed for a hostfile only",
    ("qwen_job.facts.data_names", "urllib.parse"): "1 ms of start-up, needed for an address only",
    ("qwen_job.infer.terminal", "readline"): "changes how input() works, and is missing in some Python builds",
    ("qwen_job.infer.chat", "qwen_job.infer.answer"): "torch: a wrong path should not cost its seconds",
    ("qwen_job.infer.evaluate", "qwen_job.infer.answer"): "torch: a wrong path should not cost its seconds",
    ("qwen_job.infer.harness", "lm_eval.evaluator"): "lm-eval: in the extra eval only",
    ("qwen_job.infer.harness", "lm_eval.models.huggingface"): "lm-eval: in the extra eval only",
    ("qwen_job.infer.harness", "lm_eval.models.vllm_causallms"): "lm-eval: in the extra eval only",
    ("qwen_job.infer.harness", "lm_eval.tasks"): "lm-eval: in the extra eval only",
    ("qwen_job.infer.harness", "qwen_job.infer.answer"): "torch: evaluate --check runs without it",
    ("qwen_job.infer.harness", "qwen_job.models.loading"): "torch: evaluate --check runs without it",
    ("qwen_job.models", "qwen_job.models.resolve"): "the hubs' packages; the launcher imports this package",
    ("qwen_job.plan.estimate.memory", "qwen_job.picture"): "a picture is drawn on request only",
    ("qwen_job.plan.reasoning", "qwen_job.chat.chosen"): "Jinja, needed for a template on this machine only",
    ("qwen_job.plan.reasoning", "qwen_job.chat.template"): "Jinja, needed for a template on this machine only",
    ("qwen_job.plan.reasoning", "qwen_job.chat.traits"): "Jinja, needed for a template on this machine only",
    ("qwen_job.render.engine", "qwen_job.render.sandbox"): "compiled templates need no sandbox",
    ("qwen_job.run.owner", "pwd"): "missing outside Unix",
    ("qwen_job.text", "difflib"): "6 ms of start-up, needed after a mistake only",
    ("qwen_job.train.attempt", "qwen_job.data.prepare"): "numpy and tokenizers, on rank 0 only",
    ("qwen_job.train.attempt", "qwen_job.data.sample"): "on rank 0 only",
    ("qwen_job.train.attempt", "qwen_job.data.sources"): "on rank 0 only",
    ("qwen_job.train.attempt", "qwen_job.models.resolve"): "on rank 0 only",
    ("qwen_job.train.attempt", "qwen_job.train.export"): "torch: a wrong setting should not cost its seconds",
    ("qwen_job.train.attempt", "qwen_job.train.resume"): "torch: a wrong setting should not cost its seconds",
    ("qwen_job.train.attempt", "qwen_job.train.setup"): "torch: a wrong setting should not cost its seconds",
    (
        "qwen_job.train.failures",
        "qwen_job.train.oom_advice",
    ): "the planner, after running out of memory only",
    ("qwen_job.train.reporters", "tensorboardX"): "installed in place of tensorboard",
    ("qwen_job.train.rendezvous", "logging"): "beside DeepSpeed, which configures it",
    ("qwen_job.train.rendezvous", "warnings"): "beside DeepSpeed, which configures it",
}


class Import(NamedTuple):
    """One import: from ``module``, in ``line``, of the module ``target``; ``late`` inside a function."""

    module: str
    line: int
    target: str
    late: bool

    def __str__(self) -> str:
        path = PACKAGES[self.module].relative_to(CHECKOUT)
        return f"{path}:{self.line}: {self.target}"


def module_of(path: Path) -> str:
    parts = path.relative_to(CHECKOUT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PACKAGES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    """Return the folder of the package that a module is in, or the ground floor; ``__main__`` belongs to cli."""
    parts = module.split(".")
    if len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
        return parts[1]
    return "cli" if parts[-1] == "__main__" else GROUND_FLOOR


@cache
def imports() -> tuple[Import, ...]:
    return tuple(found for module, path in PACKAGES.items() for found in _imports(module, ast.parse(path.read_text())))


def _imports(module: str, node: ast.AST, late: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            for target in dict.fromkeys(_targets(child)):
                yield Import(module, child.lineno, target, late)
        inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from _imports(module, child, late or inside)


def _targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    for alias in node.names:
        if isinstance(node, ast.Import):
            yield alias.name
        else:
            name = f"{node.module}.{alias.name}"
            yield name if name in PACKAGES else str(node.module)


def ours() -> list[Import]:
    return [found for found in imports() if found.target in PACKAGES]


@cache
def table() -> Mapping[str, frozenset[str]]:
    """Return the rooms that each room may import, as the table in CONTRIBUTING.md says."""
    page = (CHECKOUT / "CONTRIBUTING.md").read_text("utf-8")
    rows = [row.strip(" |").split(" | ") for row in page.partition("| room |")[2].split("\n\n")[0].splitlines()[2:]]
    names = [name.strip("`").removeprefix("qwen_job/") for name, *_ in rows]
    allowed = [frozenset(names if cell == "every room" else cell.split(", ")) for *_, cell in rows]
    return dict(zip(names, allowed, strict=True))


@cache
def ground_floor() -> frozenset[str]:
    """Return the files that the table's first row names."""
    page = (CHECKOUT / "CONTRIBUTING.md").read_text("utf-8")
    row = page.partition(f"| {GROUND_FLOOR} |")[2].partition(" |")[0]
    return frozenset(re.findall(r"`(\w+\.py)`", row))


def listed(found: Iterable[object]) -> str:
    return "\n".join(map(str, found))


def test_the_table_names_every_room() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert set(table()) - {GROUND_FLOOR} == rooms


def test_the_table_allows_rooms_that_exist() -> None:
    folders = {str(path.parent.relative_to(PACKAGE)) for path in PACKAGE.glob("*/*/__init__.py")}
    assert set().union(*table().values()) <= {*table(), *folders}


def test_the_table_names_every_file_of_the_ground_floor() -> None:
    assert ground_floor() == {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}


def test_the_table_has_no_cycle() -> None:
    rooms = {room: {one.partition("/")[0] for one in allowed} - {room} for room, allowed in table().items()}
    assert next(iter(TopologicalSorter(rooms).static_order())) == GROUND_FLOOR


def foreign() -> list[Import]:
    """Return the imports from a room that the table does not let it import."""
    return [one for one in ours() if not _allowed(one)]


def _allowed(one: Import) -> bool:
    here, there = room_of(one.module), room_of(one.target)
    folder = "/".join(one.target.split(".")[1:3])
    return not {there, folder}.isdisjoint({here, GROUND_FLOOR, *table()[here]})


def test_rooms_import_what_the_table_allows() -> None:
    assert not foreign(), f"not allowed by the table of rooms in CONTRIBUTING.md:\n{listed(foreign())}"


def test_modules_form_no_cycle() -> None:
    graph: dict[str, set[str]] = {module: set() for module in PACKAGES}
    for one in ours():
        graph[one.module].add(one.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def late() -> list[Import]:
    """Return the imports inside functions, apart from cli/ and from packages that are slow to import."""
    return [
        one
        for one in imports()
        if one.late and room_of(one.module) != "cli" and one.target.partition(".")[0] not in SLOW
    ]


def test_imports_inside_functions_have_a_reason() -> None:
    new = [one for one in late() if (one.module, one.target) not in LATE]
    assert not new, f"import at the top, move the shared code down, or give a reason in LATE:\n{listed(new)}"


def test_the_list_of_reasons_is_not_outdated() -> None:
    gone = set(LATE) - {(one.module, one.target) for one in late()}
    assert not gone, f"remove from LATE:\n{listed(gone)}"


def test_torch_stays_in_its_rooms() -> None:
    found = [one for one in imports() if one.target.partition(".")[0] in TORCH]
    new = [one for one in found if room_of(one.module) not in TORCH_ROOMS and one.module not in WITH_TORCH]
    assert not new, f"torch is imported in {', '.join(sorted(TORCH_ROOMS))} only:\n{listed(new)}"
