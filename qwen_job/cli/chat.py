"""``qwen-job chat``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run_or_model", type=click.Path(path_type=Path))
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Ask this and end; repeat it to go on asking.")
@click.option("--system", metavar="TEXT", help="The system prompt [default: the one of the training].")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=512, show_default=True, help="Longest answer.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy.")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.8,
    show_default=True,
    help="Nucleus, when sampling.",
)
@click.option("--seed", type=int, help="Makes sampling repeatable.")
def chat(
    run_or_model: Path,
    prompts: tuple[str, ...],
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
) -> None:
    """Talk to a trained model.

    RUN_OR_MODEL is a run's folder or a model's. On a terminal it is a conversation; otherwise each line of standard
    input is a turn. The answer streams to standard output and ends at <|im_end|>.
    """
    from qwen_job.train.chat import chat_command
    from qwen_job.train.run_folder import Sampling

    chat_command(run_or_model, prompts, system, Sampling(max_new_tokens, temperature, top_p, seed))
