"""What fetching needs of a hub: its files with their hashes, those files downloaded, and the copy in the user's cache.

A hub has repositories of models and of data sets; one object speaks of one kind.

modelscope-hub and huggingface_hub speak the protocols, retry, resume partial files and find the user's token. Mirrors:
MODELSCOPE_ENDPOINT, HF_ENDPOINT. Tokens: MODELSCOPE_API_TOKEN, HF_TOKEN, or the library's own login. Proxies: the usual
variables. QWEN_JOB_OFFLINE=1 forbids downloads, HF_HUB_OFFLINE=1 those from Hugging Face.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from qwen_job.errors import DataError, EnvironmentFault, ModelError, QwenJobError
from qwen_job.facts.data_names import shown
from qwen_job.storage import stays_below

WORKERS = 4
SCRATCH = ".cache"  # of a repository's folder: where the libraries keep locks, metadata and partial files


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository, with its SHA-256 or the SHA-1 of its git blob where the hub states them."""

    path: str
    size: int
    sha256: str | None
    git_sha1: str | None = None
    address: str = ""  # of a file that is not on a hub
    etag: str = ""  # what changes with its content, empty where the server says nothing


class Kind(NamedTuple):
    """What is fetched: its name in the hubs' APIs and in messages, the error where it cannot be had, our command."""

    api: Literal["model", "dataset"]
    word: str
    error: type[QwenJobError]
    command: str


MODEL = Kind("model", "model", ModelError, "qwen-job model fetch")
DATA_SET = Kind("dataset", "data set", DataError, "qwen-job data fetch")


class TransferError(Exception):
    """A transfer failed in a way that another attempt may cure."""


class WrongBytesError(TransferError):
    """A file was downloaded in full, but its content is not what the hub announced."""


class Hub(ABC):
    """One hub. Its methods raise TransferError if another attempt may help, ``kind.error`` if none will."""

    name: str
    package: str  # what to import
    endpoint_variable: str
    token_variable: str
    default_revision: str
    offline_variables: tuple[str, ...] = ("QWEN_JOB_OFFLINE",)
    install = "pip install 'qwen-job[hub]'"

    def __init__(self, kind: Kind = MODEL) -> None:
        self.kind = kind

    @property
    @abstractmethod
    def endpoint(self) -> str:
        """The address of the hub: the official one, or the mirror that the environment names."""

    @abstractmethod
    def _files(self, repository: str, revision: str) -> Iterator[RemoteFile]: ...

    @abstractmethod
    def _download(self, repository: str, revision: str, files: Sequence[RemoteFile], folder: Path) -> None: ...

    @abstractmethod
    def _cached(self, repository: str, revision: str) -> Path: ...

    @abstractmethod
    def _status(self, error: Exception) -> int | None:
        """Return the HTTP status with which the hub refused a request, None if it was something else."""

    def _commit(self, repository: str, revision: str) -> str | None:
        """Return the commit that a revision means now, None where there are no commits."""
        return None

    def commit(self, repository: str, revision: str, progress: Callable[[str], None] | None = None) -> str | None:
        """Return the commit that a branch or tag means now, None where the hub does not say."""
        with self._faults(repository, revision), warnings_to(self.package, progress):
            return self._commit(repository, revision)

    def list_files(
        self, repository: str, revision: str, progress: Callable[[str], None] | None = None
    ) -> list[RemoteFile]:
        """Return every file of a repository at a revision.

        ``progress`` gets the library's warnings, such as its retries.
        """
        with self._faults(repository, revision), warnings_to(self.package, progress):
            files = list(self._files(repository, revision))
        for file in files:
            if not file.path:
                raise TransferError("its answer is not a list of files: one has no name")
            if not stays_below(file.path):
                raise self.kind.error(
                    f"{shown(repository)}: the hub lists a file outside the {self.kind.word}'s folder: {file.path!r}; "
                    f"do not use this {self.kind.word}"
                )
        if not files:
            raise self.kind.error(f"{shown(repository)}: has no files at revision {revision} on {self.endpoint}")
        return files

    def download(
        self,
        repository: str,
        revision: str,
        files: Sequence[RemoteFile],
        folder: Path,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Download ``files`` into ``folder``; a partial file from an earlier attempt is resumed.

        The caller verifies them: Hugging Face's library checks sizes only. ``progress`` gets the library's warnings.
        """
        with self._faults(repository, revision), warnings_to(self.package, progress):
            self._download(repository, revision, files, folder)

    def cached(self, repository: str, revision: str) -> Path | None:
        """Return the folder with the repository in the cache of the hub's own library, if it is there.

        It may be incomplete. No network is used.
        """
        if not self.installed:
            return None
        with contextlib.suppress(Exception), warnings_to(self.package, None):
            return self._cached(repository, revision)
        return None

    @property
    def installed(self) -> bool:
        """Whether the hub's library can be imported."""
        try:
            importlib.import_module(self.package)
        except ImportError:
            return False
        return True

    @property
    def offline(self) -> str | None:
        """The variable that forbids downloads from this hub, if one is set."""
        truths = ("1", "true", "yes", "on")
        return next((name for name in self.offline_variables if os.environ.get(name, "").lower() in truths), None)

    def unreachable(self, reason: object) -> EnvironmentFault:
        """Return the error for a hub that cannot be reached, with what to do instead."""
        where = self.endpoint if self.installed else self.name  # the library knows the address
        return EnvironmentFault(
            f"{where} cannot be reached ({reason}); set {self.endpoint_variable} or HTTPS_PROXY, or run "
            f"'{self.kind.command}' on a machine with internet access, with the same cache"
        )

    def _words(self, error: Exception) -> str:
        """Return what an error says."""
        return str(error)

    def _access(self) -> str:
        """Return what a user does who is denied access."""
        return f"check the ID, accept the {self.kind.word}'s licence there and set {self.token_variable}"

    def _where(self, revision: str) -> str:
        """Return where a repository was looked for, and what a user checks."""
        return (
            f"on {self.endpoint} at revision {revision}; check the {self.kind.word}'s ID, its revision and the source "
            f"({self.name})"
        )

    @contextlib.contextmanager
    def _faults(self, repository: str, revision: str) -> Iterator[None]:
        """Translate the errors of the library and of its HTTP client, whose classes differ between versions."""
        if not self.installed:
            raise EnvironmentFault(f"downloading from {self.name} needs the package {self.package}: {self.install}")
        try:
            yield
        except (QwenJobError, TransferError):
            raise
        except Exception as error:
            raise self._translated(error, repository, revision) from error

    def _translated(self, error: Exception, repository: str, revision: str) -> Exception:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            return error  # the folder's own fault, not the hub's
        status = self._status(error)
        if status in (401, 403):
            return self.kind.error(f"{shown(repository)}: {self.endpoint} denied access ({status}); {self._access()}")
        if status is not None and 400 <= status < 500 and status not in (408, 416, 429):
            return self.kind.error(f"{shown(repository)}: not found ({status}) {self._where(revision)}")
        if status is not None:
            return TransferError(f"it answered {status}")
        known = isinstance(error, OSError) or type(error).__module__.partition(".")[0] not in ("builtins", "json")
        return TransferError(
            shown(self._words(error)) if known else f"its answer is not a list of files: {shown(repr(error))}"
        )


def clear_scratch(folder: Path) -> None:
    """Remove what the libraries keep beside a finished download."""
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)


class _ToProgress(logging.Handler):
    def __init__(self, progress: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress(" ".join(record.getMessage().split()))


@contextlib.contextmanager
def warnings_to(package: str, progress: Callable[[str], None] | None) -> Iterator[None]:
    """Send what a library logs to ``progress`` instead of standard error."""
    logger = logging.getLogger(package)
    before, propagate = logger.handlers[:], logger.propagate
    logger.handlers[:] = [_ToProgress(progress) if progress else logging.NullHandler()]
    logger.propagate = False
    try:
        yield
    finally:
        logger.handlers[:], logger.propagate = before, propagate
