"""The command line: one command per file, imported only when it is called.

Reading order: streams (stdin, stdout, stderr), options (what commands with a job share), then the commands in the order
of :data:`COMMANDS`. ``plan`` prints with plan_views. What a job goes through is in :mod:`qwen_job.api`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from typing import Any

import click

from qwen_job import __version__
from qwen_job.cli.streams import fault_of, prepare
from qwen_job.errors import REMEDY, QwenJobError, UsageError
from qwen_job.text import did_you_mean, visible

# name -> (module:attribute, short help). The short help is repeated here so that --help imports no command; a test
# keeps it equal to the command's own.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("qwen_job.cli.init:init", "Write a commented job.yaml to start from, or one of the examples."),
    "plan": ("qwen_job.cli.plan:plan", "Show the values that the job will run with, and why."),
    "render": ("qwen_job.cli.render:render", "Render the job for one target, to stdout or to files (-o)."),
    "schema": ("qwen_job.cli.schema:schema", "Print the JSON Schema of job.yaml, for editors."),
    "templates": ("qwen_job.cli.templates:templates", "List the templates, or export them for editing."),
    "submit": ("qwen_job.cli.submit:submit", "Render the job and submit it to the target."),
    "status": ("qwen_job.cli.status:status", "Show jobs: queue state, step, loss and time left."),
    "watch": ("qwen_job.cli.status:watch", "Refresh the status until the jobs have ended."),
    "sweep": ("qwen_job.cli.sweep:sweep", "Show the runs of a sweep, best first."),
    "logs": ("qwen_job.cli.logs:logs", "Print a job's output."),
    "cancel": ("qwen_job.cli.cancel:cancel", "Cancel a job without requeueing it."),
    "doctor": ("qwen_job.cli.doctor:doctor", "Inspect the cluster and generate a site profile."),
    "data": ("qwen_job.cli.data:data", "Check, clean and prepare conversations."),
    "model": ("qwen_job.cli.model:model", "Fetch, convert and export models."),
    "node": ("qwen_job.cli.node:node", "Check the machine that a job will run on, or run a pod of a TrainJob."),
    "train": ("qwen_job.cli.train:train", "Train from a train.yaml (run by every target)."),
    "chat": ("qwen_job.cli.chat:chat", "Chat with a trained model."),
    "evaluate": (
        "qwen_job.cli.evaluate:evaluate",
        "Measure held-out loss and benchmark scores, before and after training.",
    ),
    "report": ("qwen_job.cli.report:report", "Write a run's report.html, or a sweep's."),
    "docs": ("qwen_job.cli.docs:docs", "List the pages that come with qwen-job: the guides and the changes."),
    "completion": (
        "qwen_job.cli.completion:completion",
        "Print the completion script for bash, zsh or fish.",
    ),
    "exit-codes": ("qwen_job.cli.exit_codes:exit_codes", "Print the table of exit codes."),
}


# What other programs call a command.
_OTHER_COMMANDS = {
    "help": "'qwen-job --help', or 'qwen-job COMMAND --help'", "validate": "'qwen-job plan job.yaml'",
    "check": "'qwen-job plan job.yaml' or 'qwen-job data check FILE'", "lint": "'qwen-job plan job.yaml'",
    "run": "'qwen-job submit job.yaml --target local'", "start": "'qwen-job submit job.yaml --target TARGET'",
    "launch": "'qwen-job submit job.yaml --target TARGET'",
    "ps": "'qwen-job status'", "list": "'qwen-job status'", "ls": "'qwen-job status'", "stop": "'qwen-job cancel JOB'",
    "kill": "'qwen-job cancel JOB'", "serve": "'qwen-job docs serving'", "eval": "'qwen-job evaluate RUN'",
    "resume": "'qwen-job submit job.yaml --target TARGET' again: a run resumes from its newest checkpoint",
    "push": "'qwen-job model push RUN hf:OWNER/NAME'", "fetch": "'qwen-job model fetch MODEL'",
    "compare": "'qwen-job plan job.yaml --compare OTHER', or 'qwen-job sweep job.yaml'",
    "version": "'qwen-job --version'", "examples": "'qwen-job init --list'",
}  # fmt: skip


class _ReaderGone(Exception):
    """A broken pipe. click would exit with 1, which is our code for a bug."""


class LazyGroup(click.Group):
    """A group that imports a command when it is called, not when ``--help`` is printed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            instead = _OTHER_COMMANDS.get(args[0].lower())
            near = did_you_mean(args[0], COMMANDS) or "; 'qwen-job --help' lists all"
            raise UsageError(f"no such command: {args[0]!r}{f'; write {instead}' if instead else near}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _ReaderGone from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from qwen_job.cli.version import version_text

    click.echo(version_text())
    ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done, 1-127 final, 128-255 retryable; 'qwen-job exit-codes' prints the table.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version, and the versions of torch, CUDA, NCCL and DeepSpeed if installed.",
)
def cli() -> None:
    """Fine-tune a Qwen chat model from one job.yaml, on the cluster you already have.

    \b
    qwen-job init                                         write a job.yaml
    qwen-job plan job.yaml                                preview the run, with reasons
    qwen-job render job.yaml --target slurm | sbatch      run it on Slurm
    qwen-job submit job.yaml --target local               run it on this machine
    """


def _report(error: QwenJobError, colour: bool | None) -> int:
    for line in str(error).split("\n"):
        shown = visible(line.rstrip("\r")) or type(error).__name__
        # Each remedy of a problem is a separate line.
        mark = "" if shown.startswith(REMEDY) else f"{click.style('error:', fg='red', bold=True)} "
        _say(mark + shown, colour)
    return error.exit_code


def _refused(error: click.ClickException, colour: bool | None) -> int:
    """Report in one line what click does not accept; without any word, a group prints its help."""
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # from click 8.2 on
        error.show()
        return error.exit_code
    context = error.ctx if isinstance(error, click.UsageError) else None
    text = re.sub(r"\s*\n\s*", " ", error.format_message()).removesuffix(".")
    hint = f"; see '{context.command_path} --help'" if context and "Did you mean" not in text else ""
    return _report(UsageError(text + hint), colour)


def _internal(error: Exception) -> int:
    if os.environ.get("QWEN_JOB_DEBUG"):
        raise error
    text = f"internal error: {type(error).__name__}: {visible(error)} (qwen-job {__version__})"
    _say(f"{text}\nPlease report this; set QWEN_JOB_DEBUG=1 for a traceback.", False)
    return 1


def _say(line: str, colour: bool | None) -> None:
    with contextlib.suppress(OSError, ValueError):  # stderr is closed; the exit code still counts
        click.echo(line, err=True, color=colour)


def main(args: list[str] | None = None) -> Any:
    """Run the command line and exit with a code of :mod:`qwen_job.errors`."""
    colour = False if os.environ.get("NO_COLOR") else None
    prepare()
    try:
        try:
            code = cli.main(args, prog_name="qwen-job", color=colour, standalone_mode=False)
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
    except click.ClickException as error:
        code = _refused(error, colour)
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except QwenJobError as error:
        code = _report(error, colour)
    except (_ReaderGone, BrokenPipeError):
        # The reader (head, a pager) closed the pipe: not an error, and Python must not complain at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except (OSError, MemoryError) as error:
        code = _internal(error) if os.environ.get("QWEN_JOB_DEBUG") else _report(fault_of(error), colour)
    except ModuleNotFoundError as error:
        from qwen_job.cli.extras import absent

        code = _report(fault, colour) if (fault := absent(error)) else _internal(error)
    except Exception as error:
        code = _internal(error)
    sys.exit(code if isinstance(code, int) else 0)
