"""Secrets and personal data: found by form and checksum, look-alikes left alone. All numbers are made up."""

from __future__ import annotations

import pytest

from qwen_job.data.privacy import find_personal_data, find_secrets

_SECRETS = {
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "OpenAI-style API key": "sk-proj-" + "a1B2" * 8,
    "AWS access key": "AKIA" + "Q3EXAMPLEX7ABCD2",
    "Aliyun access key": "LTAI" + "5tAbCdEfGhJkLmNp",
    "GitHub token": "ghp_" + "a1B2c3" * 6,
    "Hugging Face token": "hf_" + "aBcDeF" * 6,
    "Google API key": "AIza" + "Sy-a1b2c" * 4 + "abc",
    "Slack token": "xoxb-" + "123456789012-abcdef",
    "JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx" + "MjM0.SflKxwRJSMeKKF2QT4",
    "password": "password: hunter2hunter2",
}


@pytest.mark.parametrize("kind", list(_SECRETS))
def test_secrets(kind: str) -> None:
    assert list(find_secrets(f"use {_SECRETS[kind]} here")) == [kind]


@pytest.mark.parametrize(
    "text", ["a risk-averse-and-very-long-hyphenated-word", "sk-short", "The password: none", "密码：不要告诉别人"]
)
def test_no_secrets(text: str) -> None:
    assert list(find_secrets(text)) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("写信给 li.na+x@corp.cn 吧", "an e-mail address"),
        ("电话13812345678。", "a phone number"),
        ("call +86 138 1234 5678", "a phone number"),
        ("call +44 20 7946 0958 now", "a phone number"),
        ("身份证11010519491231002X。", "a Chinese ID card number"),
        ("卡号6222021234567890128", "a bank card number"),
        ("4111 1111 1111 1111", "a bank card number"),
    ],
)
def test_personal_data(text: str, kind: str) -> None:
    assert list(find_personal_data(text)) == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "someone@example.com",
        "3.14159265358979323846",
        "110105194912310021",  # wrong check digit
        "11010519491331002X",  # thirteenth month
        "4111 1111 1111 1112",
        "0000000000000000",
        "12812345678",
        "2026-11-23 20:25:00.123456",
        "1+1=2 and +5 points",
        "138123456789",
    ],
)
def test_no_personal_data(text: str) -> None:
    assert list(find_personal_data(text)) == []
