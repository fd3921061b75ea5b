"""ModelScope through modelscope-hub (the part of modelscope that needs no torch, imported in 0.5 s)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_job.remote.hub import SCRATCH, WORKERS, Hub, RemoteFile, TransferError, WrongBytesError

if TYPE_CHECKING:
    from modelscope_hub import HubApi


class ModelScope(Hub):
    """modelscope.cn, or the mirror in MODELSCOPE_ENDPOINT."""

    name = "modelscope"
    package = "modelscope_hub"
    endpoint_variable = "MODELSCOPE_ENDPOINT"
    token_variable = "MODELSCOPE_API_TOKEN"
    default_revision = "master"

    @property
    def endpoint(self) -> str:
        """The address of the hub."""
        return str(self._api().legacy.endpoint)

    def _api(self) -> HubApi:
        from modelscope_hub import HubApi, HubConfig

        return HubApi(HubConfig())  # reads the environment now, unlike the library's default

    def _files(self, repository: str, revision: str) -> Iterator[RemoteFile]:
        for file in self._api().list_repo_files(repository, self.kind.api, revision=revision):
            if file.type != "tree":
                yield RemoteFile(file.path, file.size, file.sha256 or None)

    def _download(self, repository: str, revision: str, files: Sequence[RemoteFile], folder: Path) -> None:
        from modelscope_hub.errors import FileDownloadError

        listed = [{"Path": file.path, "Size": file.size, "Sha256": file.sha256, "Type": "blob"} for file in files]
        _draw_no_bars()
        try:
            self._api().download_repo(
                repository, self.kind.api, revision=revision, local_dir=folder, cache_dir=folder / SCRATCH,
                max_workers=WORKERS, file_list=listed,
            )  # fmt: skip
        except FileDownloadError as error:
            path, reason = next(iter(error.failed_files.items()))
            raise self._of_a_file(path, reason) from error

    def _of_a_file(self, path: str, reason: BaseException) -> BaseException:
        from modelscope_hub.errors import FileIntegrityError

        if isinstance(reason, FileIntegrityError):
            return WrongBytesError(f"{path}: {self.endpoint} sent other bytes than the hash and size it announced")
        if (isinstance(reason, OSError) and reason.errno is not None) or self._status(reason) is not None:
            return reason
        return TransferError(f"{path}: {reason}")

    def _cached(self, repository: str, revision: str) -> Path:
        folder = self._api().download_repo(repository, self.kind.api, revision=revision, local_files_only=True)
        if folder.parent.name != "snapshots" and revision != self.default_revision:
            raise FileNotFoundError(f"{folder}: a cache of an old modelscope, which does not record the revision")
        return folder

    def _status(self, error: BaseException) -> int | None:
        from modelscope_hub.errors import APIError

        return error.status_code if isinstance(error, APIError) else None


def _draw_no_bars() -> None:
    """Turn off the progress bars of modelscope-hub, which has no switch for them.

    They would fill log files: it draws them on standard error whether that is a terminal or not.
    """
    from modelscope_hub import _download

    names = vars(_download)
    names["tqdm"] = functools.partial(names["tqdm"], disable=True)
