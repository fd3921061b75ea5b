"""Find likely secrets and personal data in text, by patterns and the checksums of numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

# kind -> pattern. Prefixes are those that issuers publish for scanners of leaked keys.
_SECRETS = {
    "private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "OpenAI-style API key": r"\bsk-(?:[a-z]+-)?[A-Za-z0-9_-]{20,}",
    "AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "Aliyun access key": r"\bLTAI[0-9A-Za-z]{12,24}\b",
    "Tencent Cloud secret id": r"\bAKID[0-9A-Za-z]{13,40}\b",
    "GitHub token": r"\b(?:gh[pousr]_[0-9A-Za-z]{36}|github_pat_[0-9A-Za-z_]{40,})",
    "Hugging Face token": r"\bhf_[0-9A-Za-z]{30,}\b",
    "Google API key": r"\bAIza[0-9A-Za-z_-]{35}",
    "Slack token": r"\bxox[abprs]-[0-9A-Za-z-]{10,}",
    "JSON web token": r"(?<![0-9A-Za-z_-])eyJ[0-9A-Za-z_-]{10,}\.eyJ[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]{10,}",
    "password": r"(?i:\bpassword|\bpasswd|\bapi[_-]?key|密码)\s*[:=：]\s*[\"']?(?=[^\s\"']{0,100}\d)[^\s\"'，。,]{8,}",
}
_SECRET = re.compile("|".join(f"(?P<s{n}>{pattern})" for n, pattern in enumerate(_SECRETS.values())))
_SECRET_HINT = re.compile(r"-----BEGIN|sk-|A[KS]I[AD]|LTAI|gh[pousr]_|github_pat_|hf_|AIza|xox|eyJ|[:=：]")
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_RESERVED = re.compile(r"@(?:[a-z0-9-]+\.)*example(?:\.[a-z]+)?$|\.(?:test|invalid|localhost)$", re.IGNORECASE)
_MOBILE = re.compile(r"(?<![\d.+-])(?:\+?86[ -]?)?1[3-9]\d(?:\d{8}|[ -]\d{4}[ -]\d{4})(?![\d.])")
_ABROAD = re.compile(r"(?<![\d+])\+(?!86)\d{1,3}[ -]?(?:\(\d{1,4}\)[ -]?)?\d{2,4}(?:[ -]?\d{2,4}){2,4}(?!\d)")
_ID_CARD = re.compile(r"(?<![0-9A-Za-z])[1-9]\d{16}[0-9Xx](?![0-9A-Za-z])")
_CARD = re.compile(r"(?<![\d.-])[3-6]\d{3}(?:[ -]?\d{4}){2}[ -]?\d{1,4}(?:[ -]?\d{1,3})?(?![\d.])")
_DIGITS = re.compile(r"\d{7}|\d{4}[ -]\d{4}|\+\d")


def find_secrets(text: str) -> Iterator[str]:
    """Yield the kinds of secrets that ``text`` seems to hold."""
    if not _SECRET_HINT.search(text):
        return
    kinds = list(_SECRETS)
    for match in _SECRET.finditer(text):
        yield kinds[int((match.lastgroup or "s0")[1:])]


def find_personal_data(text: str) -> Iterator[str]:
    """Yield the kinds of personal data that ``text`` seems to hold: e-mail, phone, Chinese ID, bank card."""
    if "@" in text and any(not _RESERVED.search(match[0]) for match in _EMAIL.finditer(text)):
        yield "an e-mail address"
    if not _DIGITS.search(text):
        return
    identities = {match[0] for match in _ID_CARD.finditer(text) if is_id_card(match[0])}
    if identities:
        yield "a Chinese ID card number"
    cards = (re.sub(r"\D", "", match[0]) for match in _CARD.finditer(text) if match[0] not in identities)
    if any(is_bank_card(card) for card in cards):
        yield "a bank card number"
    if _MOBILE.search(text) or _ABROAD.search(text):
        yield "a phone number"


def is_id_card(number: str) -> bool:
    """Check an 18-character resident ID: a date of birth that exists, and the check digit of GB 11643."""
    try:
        born = date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    weighted = sum(int(digit) * 2 ** (17 - place) for place, digit in enumerate(number[:17]))
    return 1900 <= born.year <= 2100 and number[17].upper() == "10X98765432"[weighted % 11]


def is_bank_card(number: str) -> bool:
    """Check 15 to 19 digits by the Luhn checksum (ISO/IEC 7812)."""
    if not 15 <= len(number) <= 19 or len(set(number)) < 2:
        return False
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(number))]
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0
