"""``qwen-job completion``."""

import click
from click.shell_completion import get_completion_class

from qwen_job.errors import UsageError


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for bash, zsh or fish.

    \b
    bash:  eval "$(qwen-job completion bash)"       in ~/.bashrc
    zsh:   eval "$(qwen-job completion zsh)"        in ~/.zshrc
    fish:  qwen-job completion fish | source        in config.fish
    """
    from qwen_job.cli import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"click has no completion for {shell}")
    click.echo(kind(cli, {}, "qwen-job", "_QWEN_JOB_COMPLETE").source())
