"""Messages to webhooks: the form of each service, checked against what its documentation shows, over a real socket."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_job.node.webhooks import Event, NotSent, Webhook, address, body, read_webhooks, send
from tests.support.ports import free_port
from tests.support.web_server import WebServer, web_server

EVENT = Event("fault", "chat", "a <b> & c", 5.0, {"step": 3})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    with web_server() as told:
        monkeypatch.setenv("HOOK", told.url)
        yield told


def hook(kind: str, secret: str | None = None, url: str = "env:HOOK") -> Webhook:
    return Webhook(kind, url, secret, ("fault",))


@pytest.mark.parametrize(
    ("kind", "answer", "expected"),
    [
        ("slack", "ok", {"text": "a &lt;b&gt; &amp; c"}),
        ("feishu", '{"code": 0, "msg": "success"}', {"msg_type": "text", "content": {"text": "a <b> & c"}}),
        ("dingtalk", '{"errcode": 0, "errmsg": "ok"}', {"msgtype": "text", "text": {"content": "a <b> & c"}}),
        ("wecom", '{"errcode": 0, "errmsg": "ok"}', {"msgtype": "text", "text": {"content": "a <b> & c"}}),
        ("json", "", {"event": "fault", "run": "chat", "time": 5.0, "text": "a <b> & c", "step": 3}),
    ],
)
def test_each_service_gets_its_own_form(server: WebServer, kind: str, answer: str, expected: dict[str, object]) -> None:
    server.answer = answer
    send(hook(kind), EVENT, 5.0)
    assert [one.body for one in server.sent] == [expected]
    assert server.sent[0].headers["Content-Type"].startswith("application/json")


@pytest.mark.parametrize("kind", ["feishu", "dingtalk", "wecom"])
@pytest.mark.parametrize("answer", ['{"code": 19024, "errcode": 310000, "msg": "Key Words Not Found"}', "", "<html>"])
def test_a_200_with_an_error_in_it_is_not_taken_for_success(server: WebServer, kind: str, answer: str) -> None:
    server.answer = answer
    with pytest.raises(NotSent, match=f"{kind} refused it"):
        send(hook(kind), EVENT, 5.0)


def test_signatures_are_those_of_the_services_own_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    # Both computed with the Python example of the service's documentation, for these times and this secret.
    signed = body("feishu", EVENT, "SEC", now=1700000000.0)
    assert (signed["timestamp"], signed["sign"]) == ("1700000000", "yKzlnG5gJbbUvULgjP0QN/V99n1fNH31XG8Rrvl9pfk=")
    monkeypatch.setenv("HOOK", "https://oapi.dingtalk.com/robot/send?access_token=T")
    monkeypatch.setenv("KEY", "SEC")
    url = address(hook("dingtalk", "env:KEY"), now=1700000000.0)
    assert url.endswith("access_token=T&timestamp=1700000000000&sign=r%2B2we0q01lkZqz38LA5IPNbHN81U1leRf3Au4PSQb6Q%3D")


def test_no_reason_repeats_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (
        f"http://127.0.0.1:{free_port()}/topsecret",
        "http://127.0.0.1:1:2/topsecret",
        "topsecret",
        "x topsecret",
    ):
        monkeypatch.setenv("HOOK", value)
        with pytest.raises(NotSent) as refused:
            send(hook("slack"), EVENT, 5.0)
        assert "topsecret" not in str(refused.value) and str(refused.value)


@pytest.mark.parametrize("status", [302, 403, 500])
def test_an_answer_other_than_2xx_is_named(server: WebServer, status: int) -> None:
    server.status, server.answer = status, "invalid_token"
    with pytest.raises(NotSent, match=f"{status} .*invalid_token"):
        send(hook("slack"), EVENT, 5.0)
    assert len(server.sent) == 1


def test_a_server_that_does_not_answer_costs_no_more_than_the_time_given(server: WebServer) -> None:
    server.delay = 20.0
    began = time.monotonic()
    with pytest.raises(NotSent, match="timed out"):
        send(hook("json"), EVENT, 0.2)
    assert time.monotonic() - began < 5.0


def test_an_address_in_a_file(server: WebServer, tmp_path: Path) -> None:
    (tmp_path / "hook").write_text(f"{server.url}\n")
    send(hook("slack", url=f"file:{tmp_path}/hook"), EVENT, 5.0)
    with pytest.raises(NotSent, match="No such file"):
        send(hook("slack", url=f"file:{tmp_path}/none"), EVENT, 5.0)
    assert len(server.sent) == 1


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOOK", raising=False)
    with pytest.raises(NotSent, match="HOOK is not set"):
        address(hook("slack"))


def test_long_texts_fit_wecom_also_in_chinese() -> None:
    long = Event("fault", "chat", "训练" * 2000, 5.0)
    content = body("wecom", long)["text"]["content"]
    assert len(content.encode()) <= 2048 and content.startswith("训练训练") and content.endswith(" ...")


def test_entries_that_are_no_webhooks_are_left_out() -> None:
    good = {"kind": "slack", "url": "env:HOOK", "secret": None, "events": ["done"]}
    assert read_webhooks({"notify": [good, 7, {"kind": "slack"}]}) == [Webhook("slack", "env:HOOK", None, ("done",))]
    assert read_webhooks({"notify": "x"}) == read_webhooks({}) == []
