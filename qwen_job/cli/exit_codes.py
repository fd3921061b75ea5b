"""``qwen-job exit-codes``."""

import click

from qwen_job.errors import RETRYABLE_FROM, table


@click.command("exit-codes")
def exit_codes() -> None:
    """Print the table of exit codes.

    1-127 is final: you need to change something first. 128-255 is retryable: run the same job again. Kubernetes'
    restartPolicy ExitCode and the sbatch script follow the same convention.
    """
    for code, _, meaning in table():
        verdict = "retryable" if code >= RETRYABLE_FROM else ("" if code == 0 else "final")
        click.echo(f"{code:>3}  {verdict:<9}  {meaning}".rstrip())
    click.echo(
        "\nOther codes over 128 come from a signal that ended a process: 128 + its number. 137 is SIGKILL, usually\n"
        "because the host memory is full."
    )
