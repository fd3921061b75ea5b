"""``qwen-job data``: data_check, data_clean, data_fetch, data_prepare, data_show; data_options has what they share."""

from __future__ import annotations

import click

from qwen_job.cli.data_check import check
from qwen_job.cli.data_clean import clean
from qwen_job.cli.data_fetch import fetch
from qwen_job.cli.data_prepare import prepare
from qwen_job.cli.data_show import show


@click.group(short_help="Check, clean and prepare conversations.")
def data() -> None:
    """Check, clean and prepare conversations.

    Reads the format of Qwen's finetune.py ([{"id", "conversations": [{"from", "value"}]}]), ShareGPT, messages,
    Alpaca, query/response and prompt/completion, with tools, calls and reasoning, as JSON, JSON Lines (also .gz and
    .zst) or Parquet.
    """


for _command in (check, clean, fetch, prepare, show):
    data.add_command(_command)
