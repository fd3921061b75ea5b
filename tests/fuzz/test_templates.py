"""The door of templates: a job's template_dirs can lay out text, and neither run programs nor fill the machine."""

# ruff: noqa: E501 - templates of one line
from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qwen_job.render.engine import render_template
from tests.fuzz.harness import Box, fuzz, judge
from tests.jobs import PINNED

CANARY = Path("/tmp/qwen-job-template-canary-must-never-exist")
_RUN = f"os.system('touch {CANARY}')"
# What came out of public lists of ways from a template to Python.
ATTACKS = [
    f"{{{{ cycler.__init__.__globals__.{_RUN} }}}}",
    f"{{{{ joiner.__init__.__globals__.{_RUN} }}}}",
    f"{{{{ lipsum.__globals__.{_RUN} }}}}",
    f"{{{{ self.__init__.__globals__.__builtins__.__import__('os').{_RUN[3:]} }}}}",
    f"{{{{ self._TemplateReference__context.cycler.__init__.__globals__.{_RUN} }}}}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ v | attr('__class__') }}",
    "{{ v | map(attribute='__class__') | list | json }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(v) }}",
    "{{ '%s' | format(v) }}",
    "{{ v.model.parse_raw('x', proto='pickle', allow_pickle=True) }}",
    "{{ v.path.unlink() }}",
    "{{ v.path.write_text('x') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ range.__globals__ }}",
    "{{ loop.__init__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% for i in [1] %}{{ loop._context.environment }}{% endfor %}",
    "{% set x = v.update({1: 2}) %}",
    "{% set x = [].append(1) %}",
    "{% import 'os' as os %}",
    "{% include '/etc/passwd' %}",
    "{% include '../../../../etc/passwd' %}",
    "{{ 'x' * 10**9 }}",
    "{{ 10**10**9 }}",
    "{{ (10**300) ** 300 }}",
    "{{ [0] * 10**9 }}",
    "{{ range(10**9) | list }}",
    "{{ range(10**4) | map('string') | join('x' * 10**6) | sh }}",
    "{{ 'x' | center(10**9) }}",
    "{{ 'x' | indent(10**9) | sh }}",
    "{{ ['x'] | batch(10**9, 'x') | list | json }}",
    "{% set n = namespace(s='xxxxxxxxxx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s='xxxxxxxxxx') %}{% for i in range(60) %}{% set n.s = n.s.replace('x', n.s) %}{% endfor %}",
    "{% for i in range(9999) %}{% for j in range(9999) %}{% for k in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for i in range(9999) %}{% for j in range(999) %}" + "x" * 100 + "{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% include 'x.j2' %}",
    "{% extends 'x.j2' %}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "[" * 5000 + " }}",
    "{{ " + "1 + " * 20000 + "1 }}",
    "{% if v %}" * 2000,
    "{% for a in v %}" * 60 + "{% endfor %}" * 60,
    "{{ v['x'",
    "{{ 1 // 0 }}",
    "{{ 1e400 | number }}",
    "{{ v.x.y.z }}",
    "{{ '\ud800' | sh }}",
    "{{ '\\ud800' | sh }}",
    "\x1b{{",
    "{{ v | sort(attribute='__class__') }}",
    "{{ '\x1b]0;x' }}",
]
_PIECE = st.sampled_from(
    ["{{", "}}", "{%", "%}", "{#", "#}", "v", "range", "namespace", "loop", "self", "for", "in", "if", "endif", "endfor",
     "set", "=", "macro", "call", "block", "x", "|", "sh", "json", "map", "join", "list", "(", ")", "[", "]", ".", ",",
     "1", "9" * 30, "'a'", "*", "**", "~", "+", "%", "//", "include", "'x.j2'", "__class__", "not", "is", "defined",
     "\n", " ", " ", " ", "-", "\x1b", "\x00", "\u202e", "filter", "with", "import", "extends", "raw", "recursive"]
)  # fmt: skip
_EXPRESSION = st.recursive(
    st.sampled_from(["v", "1", "'a'", "[]", "{}", "v.x", "none", "range(3)", "10", "''", "undefined_name", "-1", "2.5"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "*", "**", "~", "%", "/", "//", "in", "==", "and"]), inner).map(
            lambda three: f"({three[0]} {three[1]} {three[2]})"
        ),
        st.tuples(inner, st.sampled_from(["upper", "list", "join", "length", "replace('a', v)", "sum", "map('upper')",
                                          "dictsort", "batch(3)", "int", "float", "trim", "truncate", "items"])).map(
            lambda two: f"({two[0]} | {two[1]})"
        ),
        st.tuples(inner, st.sampled_from(["x", "items()", "format(1)", "copy()", "__init__", "zfill(10)", "[0]"])).map(
            lambda two: f"{two[0]}{'' if two[1][0] == '[' else '.'}{two[1]}"
        ),
    ),
    max_leaves=6,
)  # fmt: skip
_FILTERS = st.sampled_from(["sh", "json", "yaml", "comment", "number", "words", "heredoc", "sbatch", "hostfile_line"])


def render_in(folder: str, text: str) -> str:
    """Render a user's template beside ours."""
    Path(folder, "x.j2").write_bytes(text.encode("utf-8", "surrogatepass"))
    return render_template("x.j2", {"v": {"x": "value", "path": Path(folder, "kept")}}, [folder])


@pytest.mark.parametrize("number", range(len(ATTACKS)))
def test_a_template_runs_nothing_and_ends(box: Box, tmp_path: Path, number: int) -> None:
    kept = tmp_path / "kept"
    kept.write_text("kept")
    outcome = box.call(render_in, str(tmp_path), ATTACKS[number])
    judge(outcome, ATTACKS[number], places=["x.j2", "template "])
    assert outcome.code == 2
    assert kept.read_text() == "kept" and not CANARY.exists()


@given(st.lists(_PIECE, max_size=25))
@fuzz(150)
def test_pieces_of_templates(box: Box, tmp_path_factory: pytest.TempPathFactory, pieces: list[str]) -> None:
    text = " ".join(pieces)
    judge(box.call(render_in, str(_folder(tmp_path_factory)), text), text, places=["x.j2", "template "])


@given(_EXPRESSION, _FILTERS)
@fuzz(200)
def test_expressions(box: Box, tmp_path_factory: pytest.TempPathFactory, expression: str, last: str) -> None:
    text = f"{{{{ {expression} | {last} }}}}"
    outcome = box.call(render_in, str(_folder(tmp_path_factory)), text)
    assert outcome.code in (0, 1, 2)
    if outcome.code == 1:  # a value that the format cannot hold: the caller names its field
        assert b"Unrepresentable" in outcome.stderr
    else:
        judge(outcome, text, places=["x.j2", "template "])


def _folder(factory: pytest.TempPathFactory) -> Path:
    folder = factory.getbasetemp() / "templates"
    folder.mkdir(exist_ok=True)
    return folder


def test_our_templates_are_the_same_in_the_sandbox(box: Box, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(PINNED))
    for target in ("slurm", "local"):
        words = ("render", "job.yaml", "-t", target)
        plain, sandboxed = (
            box.command(*words, *more, folder=tmp_path) for more in ((), ("--template-dir", str(tmp_path)))
        )
        assert plain.code == sandboxed.code == 0, sandboxed.text
        assert plain.stdout == sandboxed.stdout


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large", "not text"])
def test_what_is_no_template_is_refused(box: Box, tmp_path: Path, kind: str) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**PINNED, "template_dirs": [f"{tmp_path}/own"]}))
    path = tmp_path / "own/slurm/job.sbatch.j2"
    path.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(bytes(2**21) if kind == "large" else b"\xff")
    outcome = box.command("render", "job.yaml", "-t", "slurm", folder=tmp_path)
    judge(outcome, kind, places=["job.sbatch.j2"])
    assert outcome.code == 2
