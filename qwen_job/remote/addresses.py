"""Files by their address, https://, s3:// and oss://, through fsspec and the file system of each (extra ``remote``).

Credentials come from where each service's own tools look: ~/.netrc for https, AWS's variables and files, and
OSS_ACCESS_KEY_ID, OSS_ACCESS_KEY_SECRET and OSS_SESSION_TOKEN. Endpoints: AWS_ENDPOINT_URL, OSS_ENDPOINT. Proxies: the
usual variables.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from qwen_job.facts.data_names import DataName
from qwen_job.remote.hub import DATA_SET, SCRATCH, Hub, RemoteFile, TransferError, WrongBytesError

PIECE = 8 << 20  # bytes of one request: what a broken connection costs at most
_PACKAGES = {"https": "aiohttp", "s3": "s3fs", "oss": "ossfs"}
_ENDPOINTS = {"https": "HTTPS_PROXY", "s3": "AWS_ENDPOINT_URL", "oss": "OSS_ENDPOINT"}
_ACCESS = {
    "https": "put a user and password into ~/.netrc, or the file that NETRC names",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE; FSSPEC_S3_ANON=true for a public bucket",
    "oss": "set OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET",
}
_CONNECT_SECONDS, _SILENT_SECONDS = 30, 60


class Addresses(Hub):
    """The files that one address names."""

    default_revision = ""
    install = "pip install 'qwen-job[remote]'"

    def __init__(self, name: DataName) -> None:
        super().__init__(DATA_SET)
        self._address = name.name
        self.name = name.kind
        self.package = _PACKAGES[name.kind]
        self.endpoint_variable = _ENDPOINTS[name.kind]
        self.token_variable = ""

    @property
    def endpoint(self) -> str:
        """The server, or the bucket."""
        parts = urlsplit(self._address)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def installed(self) -> bool:
        """Whether fsspec and the file system's package can be imported."""
        try:
            importlib.import_module("fsspec")
        except ImportError:
            return False
        return super().installed

    def _files(self, repository: str, revision: str) -> Iterator[RemoteFile]:
        system = self._system()
        several = "*" in urlsplit(repository).path
        found = [str(path) for path in system.glob(repository)] if several else [repository]
        fixed = _plain(repository).partition("*")[0].rpartition("/")[0] + "/" if several else ""
        listed = [(address, system.info(address)) for address in sorted(found)]
        files = [(address, info) for address, info in listed if info.get("type") != "directory"]
        if not files:
            raise FileNotFoundError(repository)
        for address, info in files:
            if info.get("size") is None:
                raise self.kind.error(
                    f"{self.endpoint}: does not say how long {_file_name(address)} is, so that a file cut off would "
                    "look whole; copy the file, and write its path"
                )
            path = _plain(address).removeprefix(fixed) if several else _file_name(address)
            yield RemoteFile(path, int(info["size"]), None, address=address, etag=_etag(info))

    def _download(self, repository: str, revision: str, files: Sequence[RemoteFile], folder: Path) -> None:
        system = self._system()
        for file in files:
            part = folder / SCRATCH / f"{file.path}.part"
            part.parent.mkdir(parents=True, exist_ok=True)
            if part.exists() and (part.stat().st_size > file.size or not file.etag):
                part.unlink()
            _copy(system, file, part)
            system.invalidate_cache()
            info = system.info(file.address)
            if (info.get("size"), _etag(info)) != (file.size, file.etag):
                part.unlink()
                raise WrongBytesError(f"{file.path}: {self.endpoint} changed it while it was downloaded")
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            part.replace(folder / file.path)

    def _system(self) -> Any:
        import fsspec

        options: dict[str, Any] = {}
        if self.name == "https":
            import aiohttp

            waits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
            # A compressed transfer would have another size than the file.
            options["headers"] = {"Accept-Encoding": "identity"}
            options["client_kwargs"] = {"trust_env": True, "timeout": waits}
        elif self.name == "oss":
            variables = {"key": "OSS_ACCESS_KEY_ID", "secret": "OSS_ACCESS_KEY_SECRET", "token": "OSS_SESSION_TOKEN"}
            options = {word: os.environ[name] for word, name in variables.items() if os.environ.get(name)}
        protocol = "http" if self.name == "https" else self.name
        # An instance kept from before would have old listings and credentials.
        return fsspec.filesystem(protocol, skip_instance_cache=True, **options)

    def _cached(self, repository: str, revision: str) -> Path:
        raise FileNotFoundError(repository)  # addresses have no cache but ours

    def _status(self, error: Exception) -> int | None:
        """Return the HTTP status from the chain of errors; the file systems wrap and translate them."""
        chain = list(_chain(error))
        for one in chain:
            response = getattr(one, "response", None)
            metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
            for status in (getattr(one, "status", None), metadata.get("HTTPStatusCode")):
                if isinstance(status, int) and status >= 400:
                    return status
        if any(type(one).__name__ in ("NoCredentialsError", "PartialCredentialsError") for one in chain):
            return 401
        missing, denied = isinstance(chain[-1], FileNotFoundError), isinstance(chain[-1], PermissionError)
        return 404 if missing else 403 if denied else None

    def _words(self, error: Exception) -> str:
        cause = list(_chain(error))[-1]
        return str(cause) or type(cause).__name__

    def _access(self) -> str:
        return _ACCESS[self.name]

    def _where(self, revision: str) -> str:
        return f"on {self.endpoint}; check the address"


def _copy(system: Any, file: RemoteFile, part: Path) -> None:
    """Append the rest of a file to ``part``; a server that sends no ranges is read from the start."""
    try:
        with part.open("ab") as target, system.open(file.address, block_size=PIECE, cache_type="none") as source:
            _append(source, target, file)
    except ValueError as error:
        if "range requests" not in str(error):
            raise
        with part.open("wb") as target, system.open(file.address, block_size=0) as source:
            _append(source, target, file)


def _append(source: Any, target: Any, file: RemoteFile) -> None:
    while (left := file.size - target.tell()) > 0:
        if source.tell() != target.tell():
            source.seek(target.tell())
        # ossfs returns a byte more than it is asked for.
        piece = source.read(min(PIECE, left))[: min(PIECE, left)]
        if not piece:
            raise TransferError(f"{file.path}: ended {left:,} bytes early")
        target.write(piece)


def _etag(info: dict[str, Any]) -> str:
    """Return what identifies the content of a file, as its server states it."""
    words = ("ETag", "etag", "VersionId", "Last-Modified", "LastModified", "last-modified")
    return " ".join(str(info[word]) for word in words if info.get(word))


def _plain(address: str) -> str:
    """Return an address without its scheme: the file systems of buckets list files so."""
    return re.sub(r"^[a-z0-9]+://", "", address).lstrip("/")


def _file_name(address: str) -> str:
    """Return the name under which a file is kept: its suffix says how to read it."""
    name = PurePosixPath(unquote(urlsplit(address).path)).name
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".") or "data"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
