"""Use the Slurm lab by hand: ``python -m tests.slurmlab``; ``make slurm-lab`` opens a shell in one."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.slurmlab import Lab, LabError
from tests.slurmlab.config import CONTROLLER


def main(arguments: list[str]) -> int:
    """Run one command of the lab and return its exit code."""
    options = _parser().parse_args(arguments)
    root = Path(options.root)
    try:
        if options.command == "up":
            lab = _up(root, options)
            print(f"Slurm is up: {' '.join(lab.nodes)}. Try: python -m tests.slurmlab on {CONTROLLER} sinfo")
        elif options.command == "shell":
            return _shell(root, options)
        elif options.command == "on":
            return _interact(Lab.attach(root), options.host, options.words)
        elif options.command == "down":
            Lab.attach(root).down()
        else:
            getattr(Lab.attach(root), options.command)(options.host)
    except LabError as error:
        print(f"slurmlab: {error}", file=sys.stderr)
        return 1
    return 0


def _up(root: Path, options: argparse.Namespace) -> Lab:
    if (root / "lab.json").exists() and Lab.attach(root).hosts.is_up("switch"):
        raise LabError(f"{root}: a lab is already running; use it, or shut it down first")
    root.mkdir(parents=True, exist_ok=True)
    shared = [Path(path) for path in options.share]
    return Lab(options.nodes, ssh=options.ssh, gpu_type=options.gpu_type, shared=shared, root=root, detached=True).up()


def _shell(root: Path, options: argparse.Namespace) -> int:
    lab = _up(root, options)
    try:
        print(f"A shell on {CONTROLLER}, the login node. The lab is shut down when you leave.", flush=True)
        return _interact(lab, CONTROLLER, [os.environ.get("SHELL", "bash")])
    finally:
        lab.down()


def _interact(lab: Lab, host: str, words: list[str]) -> int:
    # The command gets the terminal itself, so that job control, colours and Ctrl-C work.
    with lab.popen(host, words, stdin=0, stdout=1, stderr=2) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # meant for the command, which received it too


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.slurmlab", description=__doc__)
    default = str(Path(tempfile.gettempdir()) / f"qwen-job-lab-{os.getuid()}")
    parser.add_argument("--root", default=os.environ.get("SLURM_LAB", default), help="the lab's folder [%(default)s]")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("up", "start a lab"), ("shell", "start a lab, open a shell in it, then shut it down")):
        up = commands.add_parser(name, help=text)
        up.add_argument("nodes", type=int, nargs="?", default=2)
        up.add_argument("--ssh", action="store_true", help="start sshd on the nodes")
        up.add_argument("--gpu-type", default="h100")
        up.add_argument("--share", action="append", default=[], help="a folder under /tmp that all hosts see")
    on = commands.add_parser("on", help="run a command on a host")
    on.add_argument("host")
    on.add_argument("words", nargs=argparse.REMAINDER)
    breakers = {
        "crash": "cut a node's power",
        "boot": "switch a crashed node on again",
        "cut": "unplug a host's network",
        "restore": "plug a host's network back in",
    }
    for name, text in breakers.items():
        commands.add_parser(name, help=text).add_argument("host")
    commands.add_parser("down", help="shut the lab down")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
