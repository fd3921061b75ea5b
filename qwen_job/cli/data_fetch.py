"""``qwen-job data fetch``."""

from __future__ import annotations

from pathlib import Path

import click

from qwen_job.cli.data_options import DATA, FILE
from qwen_job.cli.job_options import say
from qwen_job.errors import UsageError
from qwen_job.text import show_path


@click.command(short_help="Download data sets by name into the shared cache.")
@click.argument("names", nargs=-1, required=True, type=DATA)
@click.option("--revision", help="Branch, tag or commit of an hf: or ms: data set [default: its main branch].")
@click.option("--cache", type=FILE, help="Shared cache [default: $QWEN_JOB_CACHE, else ~/.cache/qwen-job].")
@click.option("--newer", is_flag=True, help="Take the newest version; otherwise the one in the cache, if there is one.")
@click.option("--verify", is_flag=True, help="Verify the hash of every cached file.")
def fetch(names: tuple[str | Path, ...], revision: str | None, cache: Path | None, newer: bool, verify: bool) -> None:
    """Download the data that NAMES mean into the shared cache, and print the files.

    \b
    hf:OWNER/NAME                 a data set on Hugging Face, its split train; ms:OWNER/NAME: on ModelScope
    hf:OWNER/NAME:SPLIT           another split; hf:OWNER/NAME:SUBSET:SPLIT: of a subset
    hf:OWNER/NAME/FILES           files by name, e.g. hf:owner/name/data/*.parquet
    https://HOST/FILE             a file; s3://BUCKET/FILES and oss://BUCKET/FILES: in a bucket

    A job does the same when it starts, so this is for clusters whose nodes have no internet access: run it where there
    is some, with --cache set to the job's data.cache_dir or, without one, its model.cache_dir or the folder
    .qwen-job-cache beside its output. What is in the cache needs no network. An interrupted download resumes. Set
    mirrors with HF_ENDPOINT and MODELSCOPE_ENDPOINT, and tokens with HF_TOKEN and MODELSCOPE_API_TOKEN. Needs: pip
    install 'qwen-job[hub]' for hf: and ms:, 'qwen-job[remote]' for addresses.
    """
    from qwen_job.data.sources import Source, describe, fetch_data
    from qwen_job.facts.data_names import parse
    from qwen_job.resources import user_cache

    for name in names:
        if isinstance(name, Path):
            raise UsageError(f"{name}: is a path, not a name such as hf:owner/name; there is nothing to fetch")
        if revision and not parse(name).on_hub:
            raise UsageError(f"--revision: {name} is an address and has none; remove it")
    for name in names:
        source = Source(str(name), revision, cache or user_cache())
        fetched = fetch_data(source, say, newer=newer, verify=verify)
        say(describe(source, fetched))
        for path in fetched.files:
            show_path(path)
