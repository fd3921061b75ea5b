"""The ``notify:`` and ``monitor:`` sections: how a run is followed from outside.

Of a webhook's address only a reference is ever written down.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from qwen_job.facts import choices
from qwen_job.job.types import ENV_NAME, Seconds, Strict, Text

_REFERENCE = rf"env:{ENV_NAME}|file:(/|~/).+"
# A variable as a shell writes it, with or without braces.
SHELL_VARIABLE = re.compile(rf"\$\{{?({ENV_NAME})\}}?")


def _reference(text: str) -> str:
    if re.fullmatch(_REFERENCE, text):
        return text
    if variable := SHELL_VARIABLE.fullmatch(text):
        raise ValueError(f"write env:{variable[1]}: the job's files name the variable, never its value")
    form = "put it into an environment variable and write env:NAME, or into a file and write file:/PATH"
    if "://" in text:
        raise ValueError(f"is the value itself, which others could read in the job's files: {form}")
    raise ValueError(f"{text[:40]!r} does not refer to a variable or a file: {form}")


# Never the address itself: a webhook's address lets anybody write to the channel.
Reference = Annotated[Text, AfterValidator(_reference)]


class Notify(Strict):
    """A webhook and the events that it hears."""

    kind: choices.WebhookKind = Field(
        description="Whose message format: slack, feishu (also Lark), dingtalk, wecom; json: every field, for a program"
    )
    url: Reference = Field(
        description="Where the address is: env:NAME, a variable of the job, or file:/PATH, on the first node"
    )
    secret: Reference | None = Field(
        None, description="feishu, dingtalk: where the signing secret is, in the same form as url"
    )
    events: list[choices.NotifyEvent] = Field(
        list(choices.NOTIFY_EVENTS),
        min_length=1,
        description="start: the run begins; done: the model is written; fault: an attempt failed and another follows; "
        "give_up: the run is not complete and no attempt follows",
    )

    @field_validator("events", mode="before")
    @classmethod
    def _one_event(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("secret")
    @classmethod
    def _only_signed(cls, value: str | None, info: Any) -> str | None:
        if value is not None and info.data.get("kind") in ("slack", "wecom", "json"):
            raise ValueError(f"{info.data['kind']} signs no messages: only feishu and dingtalk do; remove it")
        return value


class Monitor(Strict):
    """Files and a port that show the run while it trains."""

    report_every: Seconds = Field(
        choices.REPORT_EVERY, description="Seconds between two versions of report.html while training; 0: only the last"
    )
    prometheus_file: Text | None = Field(
        None,
        description="Where to write the figures for Prometheus, e.g. a file for node_exporter's textfile collector; "
        "default: metrics.prom in the run folder",
    )
    prometheus_port: Annotated[int, Field(ge=1024, le=65535)] | None = Field(
        None, description="Also serve the figures at this port of the first node; anybody who reaches it can read them"
    )

    @field_validator("prometheus_file")
    @classmethod
    def _a_file_for_prometheus(cls, value: str | None) -> str | None:
        if value is not None and not value.endswith(".prom"):
            raise ValueError(f"{value[:80]!r}: write a file whose name ends in .prom: node_exporter reads no other")
        return value


def one_or_more(value: Any) -> Any:
    """Read one webhook as a list of one."""
    return [value] if isinstance(value, dict) else value


def variables(hooks: Sequence[Notify]) -> Iterator[tuple[int, str, str]]:
    """Yield (index, field, NAME) for every reference of the form env:NAME."""
    for index, hook in enumerate(hooks):
        for field, reference in (("url", hook.url), ("secret", hook.secret or "")):
            if reference.startswith("env:"):
                yield index, field, reference.removeprefix("env:")
