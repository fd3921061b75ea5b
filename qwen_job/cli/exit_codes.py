"""``qwen-job exit-codes``."""

import click

from qwen_job.errors import RETRYABLE_FROM, table


@click.command("exit-codes")
def exit_codes() -> None:
    """Print the table of exit codes.

    1-127 is final: a person must change something. 128-255 is worth another try; Kubernetes' restartPolicy ExitCode
    and the sbatch script read it the same way.
    """
    for code, name, meaning in table():
        verdict = "try again" if code >= RETRYABLE_FROM else ("" if code == 0 else "final")
        click.echo(f"{code:>3}  {verdict:<9}  {name:<17}  {meaning}".rstrip())
