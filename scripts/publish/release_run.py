"""What the steps of a release share: where things are, and the one way to run a command."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
SETS = ("ampere", "cuda12", "v100", "cpu")
# What a dry run writes where a digest would be: no image has it.
NO_DIGEST = f"sha256:{'0' * 64}"


class Refused(Exception):
    """The release cannot be made; says why, and what to do."""


class Run:
    """One call of scripts/release.

    ``out``: OUT/source, OUT/dist, OUT/digests and OUT/notes.md are made there.
    """

    def __init__(
        self,
        out: Path,
        tag: str | None = None,
        *,
        dry: bool = True,
        archive: bool = False,
        sets: Sequence[str] | None = None,
        environ: Mapping[str, str],
    ) -> None:
        self.out, self.dry, self.archive, self.environ = out, dry, archive, dict(environ)
        text = (ROOT / "qwen_job" / "__init__.py").read_text("utf-8")
        self.version = re.findall(r'^__version__ = "(.+)"', text, re.MULTILINE)[0]
        self.tag = tag or f"v{self.version}"
        self.image: str = yaml.safe_load((ROOT / "qwen_job" / "facts" / "release.yaml").read_text("utf-8"))["image"]
        self.sets = list(sets or SETS)
        if unknown := set(self.sets) - set(SETS):
            raise SystemExit(f"release: unknown set: {', '.join(sorted(unknown))}; one of {', '.join(SETS)}")

    @property
    def source(self) -> Path:
        """The files of git, filled in."""
        return self.out / "source"

    @property
    def dist(self) -> Path:
        """What is published as files."""
        return self.out / "dist"

    @property
    def repository(self) -> str:
        """The owner and name of the repository: images and chart are below the same owner."""
        return self.image.partition("/")[2]

    def say(self, line: str) -> None:
        """Print a line at once, in its place between the commands' own output."""
        print(line, flush=True)

    def do(self, *words: str | Path, cwd: Path = ROOT, **more: str) -> str:
        """Run a command that changes nothing outside this machine; return what it prints, errors last.

        Raises:
            Refused: it fails.
        """
        self.say(f"$ {shlex.join(map(str, words))}")
        environ = {**self.environ, **more}
        try:
            done = subprocess.run(words, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise Refused(f"{words[0]} is not installed") from None
        if done.returncode:
            raise Refused(f"{words[0]} failed ({done.returncode}):\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout + done.stderr

    def publish(self, *words: str | Path) -> str:
        """Run a command that publishes or signs; in a dry run only print it."""
        if self.dry:
            self.say(f"(not run) $ {shlex.join(map(str, words))}")
            return ""
        return self.do(*words)

    def git(self, *words: str) -> str:
        """Return what git prints.

        Raises:
            Refused: this is no checkout.
        """
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Refused(f"git {words[0]} failed, and a release is made from a checkout: {done.stderr.strip()}")
        return done.stdout.strip()

    @property
    def epoch(self) -> str:
        """The time of the commit, in seconds: the time of every file in what is built."""
        return self.git("log", "-1", "--format=%ct")

    def digests(self) -> dict[str, str]:
        """Return set -> digest of the pushed image; a dry run has digests of no image.

        Raises:
            Refused: an image is missing.
        """
        found = {name: self.out / "digests" / f"{name}.json" for name in SETS}
        if self.dry:
            return {name: _digest(path) if path.exists() else NO_DIGEST for name, path in found.items()}
        missing = [name for name, path in found.items() if not path.exists()]
        if missing:
            raise Refused(f"no digest of the image {', '.join(missing)}: run the step images for it first")
        return {name: _digest(path) for name, path in found.items()}


def _digest(path: Path) -> str:
    """Read a digest from what docker buildx wrote about a push (--metadata-file)."""
    digest = str(json.loads(path.read_text("utf-8")).get("containerimage.digest", ""))
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise Refused(f"{path}: has no containerimage.digest: push the image again")
    return digest
