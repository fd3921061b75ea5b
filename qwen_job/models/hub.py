"""What is needed of two hubs' protocols, with the standard library alone: a login node needs nothing installed.

ModelScope    GET /api/v1/models/ID/repo/files?Revision=R&Recursive=True   and  /api/v1/models/ID/repo?Revision&FilePath
Hugging Face  GET /api/models/ID/tree/R?recursive=true (pages by Link)     and  /ID/resolve/R/PATH
Mirrors: MODELSCOPE_ENDPOINT, HF_ENDPOINT. Tokens: MODELSCOPE_API_TOKEN, HF_TOKEN. Proxies: the usual variables.
QWEN_JOB_OFFLINE=1 forbids downloads, HF_HUB_OFFLINE=1 those from Hugging Face.
"""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

from qwen_job import __version__, strict_json
from qwen_job.errors import EnvironmentFault, ModelError

Hub = Literal["modelscope", "huggingface"]

TIMEOUT_SECONDS = 30.0  # without a byte
_DEFAULTS = {
    "modelscope": ("MODELSCOPE_ENDPOINT", "https://modelscope.cn", "MODELSCOPE_API_TOKEN", "master"),
    "huggingface": ("HF_ENDPOINT", "https://huggingface.co", "HF_TOKEN", "main"),
}


@dataclass(frozen=True)
class RemoteFile:
    """One file of a model on a hub; ``sha256`` is None where the hub does not tell it, ``git_sha1`` (a blob's) too."""

    path: str
    size: int
    sha256: str | None
    url: str
    git_sha1: str | None = None


class TransferError(Exception):
    """A transfer broke off: trying again is right."""


class WrongBytesError(TransferError):
    """A file came in full, but it is another one than the hub announced."""


class _NoTokenElsewhere(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but carries credentials to the hub's own host only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            for name in ("Authorization", "Cookie"):
                request.remove_header(name)
        return request


_opener = urllib.request.build_opener(_NoTokenElsewhere)


def endpoint(hub: Hub) -> str:
    """Return the address of a hub: the official one or the mirror that the environment names."""
    variable, default, _, _ = _DEFAULTS[hub]
    address = (os.environ.get(variable) or default).rstrip("/")
    return address if "://" in address else f"https://{address}"


def default_revision(hub: Hub) -> str:
    """Return the name of a hub's main branch."""
    return _DEFAULTS[hub][3]


def open_url(hub: Hub, url: str, headers: Mapping[str, str] | None = None) -> http.client.HTTPResponse:
    """Open ``url`` with the hub's token; TransferError when it may work later, ModelError when it will not."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise ModelError(f"{url}: is no address of a hub; check {_DEFAULTS[hub][0]}")
    # A page's link may lead to another host, which gets no token.
    own = urlsplit(url).netloc == urlsplit(endpoint(hub)).netloc
    token = os.environ.get(_DEFAULTS[hub][2]) if own else None
    sent = {"User-Agent": f"qwen-job/{__version__}", **(headers or {})}
    if token:
        sent["Authorization"] = f"Bearer {token}"
        if hub == "modelscope":
            sent["Cookie"] = f"m_session_id={token}"
    try:
        response: http.client.HTTPResponse = _opener.open(
            urllib.request.Request(url, headers=sent), timeout=TIMEOUT_SECONDS
        )
    except urllib.error.HTTPError as error:
        error.close()
        raise _explain(hub, url, error.code) from error
    except (OSError, http.client.HTTPException) as error:
        raise TransferError(f"{urlsplit(url).netloc}: {getattr(error, 'reason', None) or error}") from error
    return response


def _explain(hub: Hub, url: str, code: int) -> Exception:
    if code == 416 or code == 429 or code >= 500:
        return TransferError(f"{urlsplit(url).netloc} answered {code}")
    if code in (401, 403):
        return ModelError(f"{url}: access denied ({code}); accept the model's licence and set {_DEFAULTS[hub][2]}")
    return ModelError(f"{url}: not found ({code}); check the model's id, its revision and the source ({hub})")


def list_files(hub: Hub, model: str, revision: str) -> list[RemoteFile]:
    """Return every file of a model at a revision; TransferError or ModelError as of :func:`open_url`."""
    try:
        files = list(_modelscope(model, revision) if hub == "modelscope" else _huggingface(model, revision))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TransferError(f"{endpoint(hub)}: answered something else than a list of files ({error!r})") from error
    if not files:
        raise ModelError(f"{model}: has no files at revision {revision} on {endpoint(hub)}")
    return files


def _json(hub: Hub, url: str) -> tuple[Any, str]:
    try:
        with open_url(hub, url) as response:
            return strict_json.loads(response.read(strict_json.MAX_BYTES)), response.headers.get("Link", "")
    except (OSError, http.client.HTTPException) as error:
        raise TransferError(f"{urlsplit(url).netloc}: {error}") from error


def _modelscope(model: str, revision: str) -> Iterator[RemoteFile]:
    base = f"{endpoint('modelscope')}/api/v1/models/{model}/repo"
    answer, _ = _json("modelscope", f"{base}/files?{urlencode({'Revision': revision, 'Recursive': 'True'})}")
    if answer.get("Code", 200) != 200:
        raise ModelError(f"{model}: {endpoint('modelscope')} answered: {answer.get('Message')}")
    for entry in answer["Data"]["Files"] or []:
        if entry.get("Type") != "tree":
            url = f"{base}?{urlencode({'Revision': revision, 'FilePath': entry['Path']})}"
            yield RemoteFile(entry["Path"], int(entry["Size"]), entry.get("Sha256") or None, url)


def _huggingface(model: str, revision: str) -> Iterator[RemoteFile]:
    base = endpoint("huggingface")
    quoted = quote(revision, safe="")
    url = f"{base}/api/models/{model}/tree/{quoted}?recursive=true"
    while url:
        entries, link = _json("huggingface", url)
        for entry in entries:
            if entry["type"] == "file":
                sha256 = (entry.get("lfs") or {}).get("oid")
                oid = None if sha256 else entry.get("oid")  # a file in LFS has that of its pointer
                sha1 = oid if oid and re.fullmatch("[0-9a-f]{40}", oid) else None
                where = f"{base}/{model}/resolve/{quoted}/{quote(entry['path'])}"
                yield RemoteFile(entry["path"], int(entry["size"]), sha256, where, sha1)
        following = re.search(r'<([^>]+)>;\s*rel="next"', link)
        url = following.group(1) if following else ""


def offline(hub: Hub) -> str | None:
    """Return the name of the variable that forbids downloads from a hub, if one is set."""
    names = ("QWEN_JOB_OFFLINE", *(("HF_HUB_OFFLINE",) if hub == "huggingface" else ()))
    return next((name for name in names if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")), None)


def unreachable(hub: Hub, reason: object) -> EnvironmentFault:
    """Return the error for a hub that cannot be reached, with what to do instead."""
    variable = _DEFAULTS[hub][0]
    return EnvironmentFault(
        f"{endpoint(hub)} cannot be reached ({reason}); set {variable} or HTTPS_PROXY, or run 'qwen-job model fetch' "
        "where there is a network, with the same cache"
    )
