"""``qwen-job report``."""

from __future__ import annotations

from pathlib import Path

import click

from qwen_job.errors import UsageError
from qwen_job.text import show_path


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--serve", is_flag=True, help="Show all runs below RUN in a browser on this machine; writes nothing.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="With --serve: the port; default: a free one.")
def report(run: Path, serve: bool, port: int) -> None:
    """Write a run's report.html, or a sweep's.

    The page shows curves, planned vs. measured memory and time, and where the wall time went; it opens offline. The
    path goes to standard output and the main figures to standard error. Also works for a running or killed run. For a
    sweep's folder the page has the curves of all its runs.
    """
    if serve:
        _serve(run, port)
        return
    if port:
        raise UsageError("--port applies only to --serve")
    from qwen_job.report.page import main_figures, write_report
    from qwen_job.report.sweep_page import write_sweep_page
    from qwen_job.run.folder import RunFolder
    from qwen_job.run.reading import there

    if there(RunFolder(run).sweep) and not there(RunFolder(run).metrics):
        show_path(write_sweep_page(run))
        return
    path = write_report(run)
    for line in main_figures(run):
        click.echo(line, err=True)
    show_path(path)


def _serve(folder: Path, port: int) -> None:
    from qwen_job.report.browse import serve

    server = serve(folder, port)
    click.echo(f"http://127.0.0.1:{server.server_port}/")
    click.echo("for this machine only; from elsewhere use ssh -L; Ctrl-C ends it", err=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return
    finally:
        server.server_close()
