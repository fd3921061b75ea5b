"""Send one message to a webhook, in the form that its service documents; the address is read where it is needed.

- ``Webhook``: an entry of train.yaml's ``notify``
- ``Event``: what happened to a run
- ``body``: an event as the JSON that a service takes
- ``send``: post it, once
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_job import strict_json
from qwen_job.atomic import read_limited
from qwen_job.sockets import address_problem
from qwen_job.text import visible, visible_lines

_MOST_ADDRESS = 4096
_MOST_ANSWER = 65536
# WeCom cuts nothing but refuses a text over 2048 bytes (developer.work.weixin.qq.com/document/path/91770); the other
# services take more.
_MOST_TEXT = 2000
_SIGNED = ("feishu", "dingtalk")


class NotSent(Exception):
    """A message that a webhook did not take, with the reason; never contains the address."""


@dataclass(frozen=True)
class Webhook:
    """One webhook; ``url`` and ``secret`` are references: env:NAME or file:PATH."""

    kind: str
    url: str
    secret: str | None
    events: tuple[str, ...]


@dataclass(frozen=True)
class Event:
    """What happened: start, done, fault or give_up; ``figures`` holds what is known of the run, by name."""

    what: str
    run: str
    text: str
    time: float
    figures: Mapping[str, Any] = field(default_factory=dict)


def read_webhooks(settings: Mapping[str, Any]) -> list[Webhook]:
    """Return the webhooks of a train.yaml; entries that the trainer will refuse are left out."""
    found = settings.get("notify")
    hooks = []
    for one in found if isinstance(found, list) else []:
        if isinstance(one, dict) and isinstance(one.get("url"), str) and isinstance(one.get("events"), list):
            secret = one.get("secret")
            hooks.append(
                Webhook(str(one.get("kind")), one["url"], secret and str(secret), tuple(map(str, one["events"])))
            )
    return hooks


def body(kind: str, event: Event, secret: str | None = None, now: float | None = None) -> dict[str, Any]:
    """Return the JSON that a service of this kind takes; ``secret`` signs a message to Feishu.

    Slack: docs.slack.dev/messaging/sending-messages-using-incoming-webhooks, escaping as in
    docs.slack.dev/messaging/formatting-message-text. Feishu: open.feishu.cn/document/client-docs/bot-v3/add-custom-bot.
    DingTalk: open.dingtalk.com/document/robots/custom-robot-access. WeCom: path/91770 of its developer documents.
    """
    text = _cut(event.text)
    if kind == "slack":
        return {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}
    if kind == "feishu":
        signed = _feishu_signature(secret, time.time() if now is None else now) if secret else {}
        return {**signed, "msg_type": "text", "content": {"text": text}}
    if kind in ("dingtalk", "wecom"):
        return {"msgtype": "text", "text": {"content": text}}
    return {"event": event.what, "run": event.run, "time": event.time, "text": event.text, **event.figures}


def address(webhook: Webhook, now: float | None = None) -> str:
    """Return the address to post to, signed for DingTalk if there is a secret.

    Raises:
        NotSent: the reference leads nowhere, or what it leads to is not an address.
    """
    url = _read(webhook.url, "url")
    if problem := address_problem(url):
        raise NotSent(f"url: {webhook.url} {problem}")
    if webhook.kind == "dingtalk" and webhook.secret:
        stamp = f"{(time.time() if now is None else now) * 1000:.0f}"
        key = _read(webhook.secret, "secret")
        sign = _signature(key.encode(), f"{stamp}\n{key}".encode())
        url += f"{'&' if '?' in url else '?'}timestamp={stamp}&sign={urllib.parse.quote_plus(sign)}"
    return url


def send(webhook: Webhook, event: Event, seconds: float) -> None:
    """Post an event once; the server has ``seconds`` for each answer of the network.

    Raises:
        NotSent: it did not arrive, or the service refused it.
    """
    url = address(webhook)
    secret = _read(webhook.secret, "secret") if webhook.kind in _SIGNED and webhook.secret else None
    request = urllib.request.Request(
        url,
        data=json.dumps(body(webhook.kind, event, secret), ensure_ascii=False).encode("utf-8", "replace"),
        headers={"Content-Type": "application/json; charset=utf-8", "User-Agent": "qwen-job"},
        method="POST",
    )
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=seconds) as answer:
            text = answer.read(_MOST_ANSWER)
    except urllib.error.HTTPError as error:
        words = _brief(error.read(_MOST_ANSWER))
        raise NotSent(f"the server answered {error.code} {error.reason}{f' ({words})' if words else ''}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        # Their texts may repeat the address.
        reason = getattr(error, "reason", error)
        known = reason.strerror if isinstance(reason, OSError) else None
        raise NotSent(known or ("timed out" if isinstance(reason, TimeoutError) else type(reason).__name__)) from None
    _check_answer(webhook.kind, text)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would turn the message into a GET; no service answers with one."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _check_answer(kind: str, text: bytes) -> None:
    """Refuse the 200 with which Feishu, DingTalk and WeCom answer a message that they did not take."""
    names = {"feishu": ("code", "StatusCode"), "dingtalk": ("errcode",), "wecom": ("errcode",)}.get(kind, ())
    if not names:
        return
    try:
        answer = strict_json.loads(text.decode("utf-8", "replace"))
    except ValueError:
        answer = None
    codes = [answer[name] for name in names if name in answer] if isinstance(answer, dict) else []
    if not codes or codes[0] != 0:
        raise NotSent(f"{kind} refused it: {_brief(text) or 'an empty answer'}")


def _read(reference: str, which: str) -> str:
    where, _, name = reference.partition(":")
    if where == "env":
        value = os.environ.get(name, "").strip()
        if not value:
            raise NotSent(f"{which}: the variable {name} is not set here: see docs/watching.md")
        return value
    try:
        return read_limited(Path(name).expanduser(), _MOST_ADDRESS).decode("utf-8").strip()
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or "is no text, or too long"
        raise NotSent(f"{which}: {reference}: {why}") from None


def _feishu_signature(secret: str, now: float) -> dict[str, str]:
    stamp = f"{now:.0f}"
    return {"timestamp": stamp, "sign": _signature(f"{stamp}\n{secret}".encode(), b"")}


def _signature(key: bytes, message: bytes) -> str:
    return base64.b64encode(hmac.new(key, message, hashlib.sha256).digest()).decode("ascii")


def _cut(text: str) -> str:
    shown = visible_lines(text)
    data = shown.encode("utf-8", "replace")
    return shown if len(data) <= _MOST_TEXT else data[:_MOST_TEXT].decode("utf-8", "ignore") + " ..."


def _brief(text: bytes) -> str:
    return visible(" ".join(text.decode("utf-8", "replace").split()), 200)
