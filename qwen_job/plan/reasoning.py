"""What becomes of answers with and without reasoning: the chat template decides, as far as this machine knows it."""

from __future__ import annotations

from pathlib import Path

from qwen_job.errors import JobError, ModelError
from qwen_job.facts import choices
from qwen_job.facts.model_files import exists
from qwen_job.facts.thinking import Thinking, known_thinking, resolved_empty_think
from qwen_job.job import Job
from qwen_job.plan.decision import Ledger

AUTO, CHATML = choices.NAMED_TEMPLATES
_RULE = "the run reads the chat template and decides: mask if it has a place for reasoning, otherwise omit"
_SPLIT = "where the template drops earlier reasoning, a conversation becomes several samples; the plan counts it as one"


def decide_thinking(job: Job, ledger: Ledger) -> list[str]:
    """Note data.empty_think and, for a template that thinks, data.several_thoughts; return the warnings about them.

    Nothing is downloaded.

    Raises:
        JobError: the template cannot be read, or is no Jinja template.
    """
    written = None if job.data.empty_think == "auto" else job.data.empty_think
    thinking = template_thinking(job)
    if thinking is None:
        ledger.decide("data.empty_think", written, "auto", _RULE)
        return []
    chosen, why = resolved_empty_think("auto", thinking)
    ledger.decide("data.empty_think", written, chosen, why)
    if thinking != "none":
        several = job.data.several_thoughts if job.wrote("data", "several_thoughts") else None
        ledger.decide("data.several_thoughts", several, "split", _SPLIT)
    if thinking == "none" and written in ("learn", "mask"):
        return [f"data.empty_think: {written} has no effect: {why}; remove the line"]
    return []


def template_thinking(job: Job) -> Thinking | None:
    """Return what the job's chat template does about reasoning; None if this machine does not have it.

    Raises:
        JobError: the template cannot be read, or is no Jinja template.
    """
    template, source = job.data.template, job.model.resolved_source
    if template == CHATML or (template == AUTO and source == "random"):
        return "none"
    folder = Path(job.model.name).expanduser()
    if template != AUTO:
        return _probed(job, folder) if exists(Path(template)) else None
    if source == "local":
        # Without tokenizer files, it is the shape of a model whose files are elsewhere.
        return _probed(job, folder) if any(folder.glob("*token*")) else None
    return known_thinking(job.model.name)


def _probed(job: Job, folder: Path) -> Thinking | None:
    """Return what a template on this machine does; None if it does not even render a question."""
    from qwen_job.chat.chosen import choose
    from qwen_job.chat.template import Unrenderable
    from qwen_job.chat.traits import traits_of

    field = ("model", "name") if job.data.template == AUTO else ("data", "template")
    try:
        template = choose(job.data.template, folder).template
    except ModelError as error:
        raise JobError([job.problem(field, str(error))]) from None
    if template is None:
        return "none"
    try:
        template.render([{"role": "user", "content": "q"}])
    except Unrenderable as error:
        if error.field == "data.template":  # no Jinja
            raise JobError([job.problem(field, error.message)]) from None
        return None
    return traits_of(template).thinking
