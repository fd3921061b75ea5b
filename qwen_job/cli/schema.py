"""``qwen-job schema``."""

import json

import click


@click.command()
def schema() -> None:
    """Print the JSON Schema of job.yaml, for editors.

    \b
    qwen-job schema > job.schema.json
    and as the first line of job.yaml:  # yaml-language-server: $schema=job.schema.json
    """
    from qwen_job.job.schema import job_schema

    click.echo(json.dumps(job_schema(), indent=2, ensure_ascii=False))
