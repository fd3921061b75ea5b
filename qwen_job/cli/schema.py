"""``qwen-job schema``."""

import click

from qwen_job.text import json_text


@click.command()
@click.option("--site", is_flag=True, help="Print the schema of a site profile, where no field is required.")
def schema(site: bool) -> None:
    """Print the JSON Schema of job.yaml, for editors.

    \b
    qwen-job schema > job.schema.json
    and as the first line of job.yaml:  # yaml-language-server: $schema=job.schema.json
    """
    from qwen_job.job.schema import job_schema, site_schema

    click.echo(json_text(site_schema() if site else job_schema(), indent=2))
