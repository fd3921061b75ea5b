"""A release, tried without a registry: the dry run does what the workflow does, and what it builds is by digest."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from qwen_job import __version__
from scripts.publish import files
from scripts.publish.release import STEPS
from scripts.publish.release_run import NO_DIGEST, SETS, Refused, Run
from tests.support import optional
from tests.support.helm import helm

SECOND = "registry.example.com/team/"
# Writes down how it is called; docker also writes the digest of what it pushed, cosign a signature.
STANDS_IN = """#!/bin/bash
echo "${0##*/} $*" >> "$CALLS"
while [ $# -gt 1 ]; do
    [ "$1" != --bundle ] || echo signature > "$2"
    [ "$1" != --metadata-file ] || printf '{"containerimage.digest": "sha256:%064d"}' 7 > "$2"
    shift
done
"""


class Released(NamedTuple):
    """One run of scripts/release: its folder, what it printed, and the calls of programs that publish or sign."""

    out: Path
    shown: str
    calls: list[str]


def stand_ins(folder: Path) -> dict[str, str]:
    """Return an environment with programs in the place of docker, cosign, gh, sudo, pip and helm push."""
    if importlib.util.find_spec("twine") is None:
        optional.skip("tools", "twine is not installed")
    tools, calls = folder / "tools", folder / "calls"
    tools.mkdir(parents=True)
    calls.touch()
    push = (
        f'#!/bin/bash\n[ "$1" = push ] || exec {shlex.quote(str(helm()))} "$@"\n'
        f'echo "${{0##*/}} $*" >> "$CALLS"; echo "Digest: sha256:{8:064d}" >&2\n'
    )
    programs = {**dict.fromkeys(("docker", "cosign", "gh"), STANDS_IN), "helm": push}
    # The runner's own preparations; they publish nothing.
    programs |= dict.fromkeys(("pip", "sudo"), "#!/bin/bash\n")
    for name, text in programs.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHON": sys.executable, "CALLS": str(calls), "HELM": "helm"}


@pytest.fixture(scope="module")
def dry(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Released:
    """Return a dry run of all steps, with a second registry (10 s: it builds and packages)."""
    folder = tmp_path_factory.mktemp("dry")
    environ = {**stand_ins(folder), "SECOND_REGISTRY": SECOND}
    done = subprocess.run(
        [checkout / "scripts" / "release", "--dry-run", "-o", folder / "out"],
        env=environ, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Released(folder / "out", done.stdout, (folder / "calls").read_text("utf-8").splitlines())


@pytest.fixture(scope="module")
def real(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Released:
    """Return what release.yml does on a tag: each step of each job, run in a copy of this checkout.

    The programs that publish only write down how they are called; actions (``uses``) are left out (10 s).
    """
    folder = tmp_path_factory.mktemp("real")
    copy = repository(checkout, folder / "checkout")
    environ = {**stand_ins(folder), "GITHUB_REF_NAME": f"v{__version__}"}
    shown = ""
    for step, values in workflow_steps(checkout):
        script = re.sub(r"\$\{\{ (.*?) \}\}", lambda found, values=values: values[found[1]], step["run"])
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script], cwd=copy,
            env={**environ, **{name: values[text.strip("${} ")] for name, text in step.get("env", {}).items()}},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        shown += done.stdout
    return Released(copy / "dist" / "release", shown, (folder / "calls").read_text("utf-8").splitlines())


def repository(checkout: Path, copy: Path) -> Path:
    """Return a repository with one commit: the files that git knows, as they are now."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    names = subprocess.run([*git, "ls-files", "-z"], cwd=checkout, capture_output=True, text=True, check=True).stdout
    for name in names.rstrip("\0").split("\0"):
        if (checkout / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(checkout / name, copy / name, follow_symlinks=False)
    for words in (["init", "-q"], ["add", "-A", "-f"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], cwd=copy, check=True, timeout=60)
    return copy


def workflow_steps(checkout: Path) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Yield each step that runs a command, in order, with the values of its expressions; once per set in a matrix."""
    workflow = yaml.safe_load((checkout / ".github" / "workflows" / "release.yml").read_text("utf-8"))
    for job in workflow["jobs"].values():
        for name in job.get("strategy", {}).get("matrix", {}).get("set", [""]):
            values = {"matrix.set": name, "vars.SECOND_REGISTRY": SECOND, "github.token": "secret"}
            # Without a key; test_chart_key.py has one.
            values |= dict.fromkeys(("secrets.CHART_SIGNING_KEY", "secrets.CHART_SIGNING_PASSPHRASE"), "")
            yield from ((step, values) for step in job["steps"] if "run" in step)


def commands(released: Released, kind: str) -> list[str]:
    """Return the commands that were printed, without what one run alone has: folders, the commit, digests."""
    found = re.findall(rf"^{kind}(.*)$", released.shown, re.MULTILINE)
    lines = [line.replace(str(released.out), "OUT") for line in found]
    own = r"sha256:\w{64}|(?<=REVISION=)\w{40}|(?<=EPOCH=)\d+|(?<=\.json )/\S+$"
    return [re.sub(own, "OWN", line) for line in lines]


def test_a_dry_run_publishes_and_signs_nothing(dry: Released) -> None:
    assert dry.calls == []
    programs = [shlex.split(line)[0] for line in commands(dry, r"\(not run\) \$ ")]
    assert set(programs) == {"docker", "cosign", "helm", "gh"}


def test_a_dry_run_prints_what_a_release_runs(dry: Released, real: Released) -> None:
    ran = [line for line in commands(real, r"\$ ") if not re.match(r"\S*python|helm package", line)]
    assert commands(dry, r"\(not run\) \$ ") == ran != []
    assert len(real.calls) == len(ran)


def test_every_image_and_file_is_signed(real: Released) -> None:
    signed = [shlex.split(line) for line in real.calls if line.startswith("cosign ")]
    blobs = {Path(words[-1]).name for words in signed if words[1] == "sign-blob"}
    made = {path.name for path in (real.out / "dist").iterdir()}
    assert blobs == {name for name in made if not name.endswith(".sigstore.json")}
    assert all(f"{name}.sigstore.json" in real.calls[-1] for name in blobs)
    images = [words[-1] for words in signed if words[1] == "sign"]
    charts = {image for image in images if "/charts/" in image}
    assert len(images) == 2 * len(SETS) + len(charts) and all("@sha256:" in image for image in images)
    assert charts == {f"{host}/charts/qwen-job@sha256:{8:064d}" for host in ("ghcr.io/qwen-job", SECOND.rstrip("/"))}


def test_the_wheel_and_the_chart_run_the_images_of_the_release(real: Released, tmp_path: Path) -> None:
    digest = f"sha256:{7:064d}"
    zipfile.ZipFile(next((real.out / "dist").glob("*.whl"))).extractall(tmp_path)
    filled = yaml.safe_load((tmp_path / "qwen_job" / "facts" / "release.yaml").read_text("utf-8"))
    assert filled["version"] == __version__ and filled["digests"] == dict.fromkeys(SETS, digest)
    job = {
        "name": "a",
        "model": "Qwen/Qwen-1_8B-Chat",
        "data": "/s/a.json",
        "output": "/s/o",
        "cluster": {"gpu": "H100"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    words = [sys.executable, "-P", "-m", "qwen_job", "render", "job.yaml", "-t", "kubernetes"]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    assert f"ghcr.io/qwen-job/qwen-job@{digest}" in done.stdout
    chart = subprocess.run(
        [helm(), "show", "values", real.out / "dist" / f"qwen-job-{__version__}.tgz"], capture_output=True, text=True
    )
    assert f"qwen-job@{digest}" in chart.stdout
    assert re.fullmatch(r"[0-9a-f]{40}", filled["commit"])


def test_a_dry_run_s_digests_are_of_no_image(dry: Released) -> None:
    text = (dry.out / "source" / "qwen_job" / "facts" / "release.yaml").read_text("utf-8")
    assert text.count(NO_DIGEST) == len(SETS)


@pytest.mark.usefixtures("dry")
def test_the_checkout_stays_unfilled(checkout: Path) -> None:
    values = yaml.safe_load((checkout / "qwen_job" / "facts" / "release.yaml").read_text("utf-8"))
    assert (values["version"], values["commit"], set(values["digests"].values())) == (None, None, {None})


def test_the_notes_are_the_changelog_s_with_the_images(real: Released, checkout: Path) -> None:
    notes = (real.out / "notes.md").read_text("utf-8")
    changes = (checkout / "CHANGELOG.md").read_text("utf-8").partition(f"\n## {__version__}\n")[2].partition("\n## ")[0]
    assert notes.startswith(changes.strip()) and len(changes) > 1000
    assert notes.count("| `ghcr.io/qwen-job/qwen-job@sha256:") == len(SETS) and "cosign verify " in notes


def test_the_sbom_lists_what_the_wheel_needs(dry: Released) -> None:
    bill = json.loads((dry.out / "dist" / f"qwen_job-{__version__}.cdx.json").read_text("utf-8"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    names = {one["name"] for one in bill["components"]}
    assert {"click", "jinja2", "markupsafe", "pydantic", "pydantic-core", "pyyaml"} <= names
    assert not names & {"torch", "numpy", "pytest"}
    references = {one["bom-ref"] for one in (*bill["components"], bill["metadata"]["component"])}
    assert {one for entry in bill["dependencies"] for one in (entry["ref"], *entry["dependsOn"])} == references


def test_every_set_of_images_is_released_and_audited(checkout: Path) -> None:
    sets = {path.parent.name for path in (checkout / "qwen_job" / "facts" / "image").glob("*/set.yaml")}
    fields = yaml.safe_load((checkout / "qwen_job" / "facts" / "release.yaml").read_text("utf-8"))["digests"]
    audit = yaml.safe_load((checkout / ".github" / "workflows" / "audit.yml").read_text("utf-8"))
    audited = set(audit["jobs"]["audit"]["strategy"]["matrix"]["what"]) - {"launcher"}
    assert set(SETS) == set(fields) == audited == sets


def test_the_workflow_runs_every_step_in_order(checkout: Path) -> None:
    workflow = yaml.safe_load((checkout / ".github" / "workflows" / "release.yml").read_text("utf-8"))
    lines = [
        step["run"]
        for job in workflow["jobs"].values()
        for step in job["steps"]
        if "scripts/release" in step.get("run", "")
    ]
    steps = [word for line in lines for word in shlex.split(line)[1:] if word in STEPS]
    assert steps == list(STEPS)
    assert workflow["jobs"]["images"]["strategy"]["matrix"]["set"] == list(SETS)
    assert workflow["jobs"]["release"]["permissions"]["id-token"] == "write"


def test_a_tag_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"the tag is v9\.9 and .* says"):
        files.check(Run(tmp_path, "v9.9", environ={}))


def test_a_version_without_changes_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, environ={})
    run.version = "9.9.9"
    with pytest.raises(Refused, match=r"no section '## 9\.9\.9'"):
        files.changes(run)


def test_a_release_without_one_of_its_images_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, dry=False, environ={})
    (tmp_path / "digests").mkdir()
    (tmp_path / "digests" / "cpu.json").write_text(json.dumps({"containerimage.digest": f"sha256:{'a' * 64}"}))
    with pytest.raises(Refused, match=r"no digest of the image ampere, cuda12, v100"):
        run.digests()
    for name in SETS:
        (tmp_path / "digests" / f"{name}.json").write_text("{}")
    with pytest.raises(Refused, match=r"has no containerimage\.digest"):
        run.digests()


@pytest.mark.parametrize(
    ("step", "words"), [("build", "run the step fill first"), ("sign", "run the step build first")]
)
def test_a_step_out_of_order_names_the_one_before(tmp_path: Path, step: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        STEPS[step](Run(tmp_path, environ={}))


def test_a_failing_program_ends_the_release(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"false failed \(1\)"):
        Run(tmp_path, dry=False, environ={"PATH": os.environ["PATH"]}).publish("false")
    with pytest.raises(Refused, match="nowhere is not installed"):
        Run(tmp_path, dry=False, environ={"PATH": os.environ["PATH"]}).publish("nowhere")


@pytest.mark.parametrize("words", [["fly"], ["--set", "a100"]])
def test_a_wrong_word_names_the_right_ones(checkout: Path, words: list[str]) -> None:
    done = subprocess.run(
        [checkout / "scripts" / "release", "--dry-run", *words],
        env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and ("images" in done.stderr or "ampere, cuda12, v100, cpu" in done.stderr)
