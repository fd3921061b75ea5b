"""The ``notify:`` section: webhooks that hear how a run goes. Only a reference to an address is ever written down."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from qwen_job.facts import choices
from qwen_job.job.types import ENV_NAME, Strict, Text

_REFERENCE = rf"env:{ENV_NAME}|file:(/|~/).+"


def _reference(text: str) -> str:
    if re.fullmatch(_REFERENCE, text):
        return text
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


def one_or_more(value: Any) -> Any:
    """Read one webhook as a list of one."""
    return [value] if isinstance(value, dict) else value


def variables(hooks: Sequence[Notify]) -> Iterator[tuple[int, str, str]]:
    """Yield (index, field, NAME) for every reference of the form env:NAME."""
    for index, hook in enumerate(hooks):
        for field, reference in (("url", hook.url), ("secret", hook.secret or "")):
            if reference.startswith("env:"):
                yield index, field, reference.removeprefix("env:")
