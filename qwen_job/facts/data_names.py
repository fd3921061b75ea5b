"""How data is named, in job.yaml, in train.yaml and on the command line: a path, a data set of a hub, or an address.

    hf:OWNER/NAME                 the split train of a data set on Hugging Face;  ms:OWNER/NAME: on ModelScope
    hf:OWNER/NAME:SPLIT           another split;  hf:OWNER/NAME:SUBSET:SPLIT: of a subset
    hf:OWNER/NAME/FILES           files of it, by name; * and ? stand for any characters, ** also for folders
    https://HOST/FILE             a file;  s3://BUCKET/FILES and oss://BUCKET/FILES: files, by name

Everything else is a path; ``./hf:x`` is a file with an odd name.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Kind = Literal["huggingface", "modelscope", "https", "s3", "oss"]
SPLIT = "train"
_HUBS: dict[str, Kind] = {"hf": "huggingface", "ms": "modelscope"}
_SHORT: dict[str, str] = {name: short for short, name in _HUBS.items()}
_ADDRESSES: dict[str, Kind] = {"https": "https", "http": "https", "s3": "s3", "oss": "oss"}
# Compiled (and cached by re) at first use: every command with a job imports this module.
_NAME = r"(?i:(hf|ms|huggingface|modelscope):(?!//)|([a-z][a-z0-9+.-]+)://|(https?|s3|oss):/)"
_ID = r"(?a:[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)"
_WORD = r"(?a:[\w.+-]+)"
# The pages of a data set, which are not its files; /resolve/ and /raw/ are.
_PAGE = (
    r"https?://(?:www\.)?(?:(?P<hf>huggingface\.co|hf\.co|hf-mirror\.com)|modelscope\.(?:cn|ai))/datasets/"
    r"(?P<id>[^/\s?#]+/[^/\s?#]+)(?!/(?:resolve|raw)/)(?:/(?:blob|tree|file/view)/[^/\s]+/(?P<file>[^\s?#]+))?.*"
)
# What signs an address or opens it: whoever reads the logs or train.yaml could use it.
_KEYS = (
    r"(?i)x-(amz|goog|oss|ms|cos)-.*|(aws|oss|google)?accesskeyid|.*(signature|token|secret|password|passwd|credential)"
    r".*|sig|sign|auth|authorization|key|api_?key|expires|policy|q-.*"
)
_FORMS = (
    "write hf:owner/name, hf:owner/name:split, hf:owner/name:subset:split or hf:owner/name/file.jsonl (ms: for "
    "ModelScope)"
)


class DataName(NamedTuple):
    """What a name of data says: where it is, and which of its files."""

    kind: Kind
    name: str  # a hub's owner/name, or the whole address
    files: str = ""  # a pattern of files; then there is neither subset nor split
    subset: str = ""
    split: str = ""

    @property
    def on_hub(self) -> bool:
        """Whether it is a data set of a hub, which has revisions."""
        return self.kind in ("huggingface", "modelscope")

    def of(self, subset: str, split: str) -> str:
        """Return the name of another part of the same data set."""
        parts = [part for part in (subset, split) if part]
        return ":".join([f"{_SHORT[self.kind]}:{self.name}", *parts])


def is_name(text: str) -> bool:
    """Tell whether ``text`` names a data set or an address, or is meant to; otherwise it is a path."""
    return re.match(_NAME, text) is not None


def parse(text: str) -> DataName:
    """Return what a name says.

    Raises:
        ValueError: it is malformed, of a kind that is not supported, or holds a secret; the message never repeats one.
    """
    prefix = text.partition(":")[0].lower()
    if "://" in text[: len(prefix) + 3]:
        return _address(text, prefix)
    if prefix in _ADDRESSES:
        raise ValueError(f"write {prefix}:// with two slashes")
    prefix = _SHORT.get(prefix, prefix)
    return _data_set(text, prefix, text.partition(":")[2])


def shown(text: object) -> str:
    """Return ``text`` with the queries and the user names of the addresses in it left out: they may be secrets."""
    return re.sub(r"\?[^\s'\"<>)]+", "?...", re.sub(r"(?<=://)[^/@\s]*@", "...@", str(text)))


def _data_set(text: str, prefix: str, rest: str) -> DataName:
    if not text.startswith(f"{prefix}:"):
        raise ValueError(f"{text!r}: write {prefix}:{rest}")
    place, *parts = rest.split(":")
    owner, _, others = place.strip("/").partition("/")
    name, _, files = others.partition("/")
    if "@" in place:
        raise ValueError(f"{text!r}: write what follows @ as 'revision', beside 'path' (of a command: --revision)")
    if not re.fullmatch(_ID, f"{owner}/{name}") or len(parts) > 2 or place != place.strip("/"):
        raise ValueError(f"{text!r} names no data set: {_FORMS}")
    if any("[" in part for part in parts):
        raise ValueError(f"{text!r}: a part of a split cannot be named; take the whole, with a weight below 1 for less")
    if not all(re.fullmatch(_WORD, part) for part in parts):
        raise ValueError(f"{text!r} has a subset or a split that is no name: {_FORMS}")
    if files and parts:
        raise ValueError(f"{text!r} names files and a split; name one of them")
    subset, split = ["", "", *parts][-2:]
    return DataName(_HUBS[prefix], f"{owner}/{name}", files, subset, split)


def _address(text: str, scheme: str) -> DataName:
    from urllib.parse import parse_qsl, urlsplit

    hidden = shown(text)
    _refuse_scheme(text, scheme)
    try:
        parts = urlsplit(text)
        host = parts.hostname
        query = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError as error:
        raise ValueError(f"{hidden!r} is not an address: {shown(error)}") from None
    if "@" in parts.netloc:
        raise ValueError(f"{hidden!r} holds a user name or password, which logs would show; {_ACCESS[scheme]}")
    if secret := next((key for key, _ in query if re.fullmatch(_KEYS, key)), None):
        raise ValueError(
            f"{hidden!r} is signed ({secret[:40]}): whoever reads train.yaml or a log could use it, and it expires; "
            f"write it without its query: {_ACCESS[scheme]}"
        )
    if not host or not parts.path.strip("/") or parts.path.endswith("/"):
        what = "https://host/file.jsonl" if scheme in ("http", "https") else f"{scheme}://bucket/file.jsonl or /*.jsonl"
        raise ValueError(f"{hidden!r} names no file; write {what}")
    if "*" in parts.path and scheme in ("http", "https"):
        raise ValueError(f"{hidden!r}: a web server lists no files, so * means nothing there; write each file")
    if parts.fragment:
        raise ValueError(f"{hidden!r} has a part after #; remove it, or write # in a file's name as %23")
    return DataName(_ADDRESSES[scheme], text)


def _refuse_scheme(text: str, scheme: str) -> None:
    """Refuse what is written like an address and should be something else."""
    hidden = shown(text)
    if scheme == "file":
        raise ValueError(f"{hidden!r}: write the path itself: {text[len('file://') :]}")
    if scheme in _HUBS:
        raise ValueError(f"{hidden!r}: write {scheme}:owner/name, without slashes before the owner")
    if scheme not in _ADDRESSES:
        raise ValueError(
            f"{scheme}:// is not supported; use https://, s3://, oss://, hf: or ms:, or copy the file to storage that "
            "the job can read, and write that path"
        )
    if page := re.fullmatch(_PAGE, text):
        short = f"{'hf' if page['hf'] else 'ms'}:{page['id']}" + (f"/{page['file']}" if page["file"] else "")
        raise ValueError(f"{hidden!r} is the page of a data set, not its data; write {short!r}")


_NETRC = "credentials belong into ~/.netrc, or the file that NETRC names"
_ACCESS = {
    "http": _NETRC,
    "https": _NETRC,
    "s3": "credentials belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials",
    "oss": "credentials belong into OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET",
}
