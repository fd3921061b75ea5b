"""``qwen-job chat``."""

from __future__ import annotations

from pathlib import Path

import click

from qwen_job.cli.job_options import FiniteRange


@click.command()
@click.argument("run_or_model", type=click.Path(path_type=Path))
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Ask this and exit; repeat for more turns.")
@click.option("--system", metavar="TEXT", help="System prompt [default: the chat template's].")
@click.option(
    "--tools", type=click.Path(path_type=Path), metavar="FILE", help="JSON list of functions that the model may call."
)
@click.option(
    "--thinking",
    type=click.Choice(["on", "off", "auto"]),
    default="auto",
    show_default=True,
    help="Reason before answering; auto leaves it to the chat template.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    help="Maximum answer length [default: the model's, else 512, or 4096 with reasoning].",
)
@click.option("--temperature", type=FiniteRange(min=0), help="0 is greedy [default: the model's, else 0].")
@click.option(
    "--top-p",
    type=FiniteRange(0, 1, min_open=True),
    help="Nucleus sampling threshold [default: the model's, else 0.8].",
)
@click.option("--seed", type=click.IntRange(-(2**63), 2**63 - 1), help="Make sampling reproducible.")
def chat(
    run_or_model: Path,
    prompts: tuple[str, ...],
    system: str | None,
    tools: Path | None,
    thinking: str,
    max_new_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
) -> None:
    """Chat with a trained model.

    RUN_OR_MODEL is a run folder or a model folder. On a terminal you get a conversation; otherwise each line of
    standard input is a turn. Prompts are those that a server builds with the model's chat template. The answer streams
    to standard output and ends at <|im_end|>; reasoning goes to standard error. After a call of a tool, the next line
    (or --prompt) is its result. Settings you leave out come from the model's generation_config.json, including top_k,
    min_p and repetition_penalty.
    """
    from qwen_job.infer.chat import Frame
    from qwen_job.infer.source import SamplingOptions
    from qwen_job.infer.terminal import chat_command
    from qwen_job.infer.tools import tools_in

    frame = Frame(system, tools_in(tools) if tools else (), {"on": True, "off": False}.get(thinking))
    chat_command(run_or_model, prompts, frame, SamplingOptions(max_new_tokens, temperature, top_p, seed))
