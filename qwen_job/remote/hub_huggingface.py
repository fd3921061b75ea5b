"""Hugging Face through huggingface_hub (which transformers brings, imported in 0.5 s without torch).

Its snapshot_download starts a file again that a killed process left half done: the partial file has
a random name. Its http_get, one floor below, resumes one at any byte, so that is what downloads here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_job.remote.hub import SCRATCH, WORKERS, Hub, RemoteFile

if TYPE_CHECKING:
    from huggingface_hub import HfApi


class HuggingFace(Hub):
    """huggingface.co, or the mirror in HF_ENDPOINT."""

    name = "huggingface"
    package = "huggingface_hub"
    endpoint_variable = "HF_ENDPOINT"
    token_variable = "HF_TOKEN"
    default_revision = "main"
    offline_variables = ("QWEN_JOB_OFFLINE", "HF_HUB_OFFLINE")

    @property
    def endpoint(self) -> str:
        """The address of the hub."""
        return (os.environ.get(self.endpoint_variable) or "https://huggingface.co").rstrip("/")

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, library_name="qwen-job")

    def _files(self, repository: str, revision: str) -> Iterator[RemoteFile]:
        from huggingface_hub.hf_api import RepoFile

        for entry in self._api().list_repo_tree(repository, revision=revision, recursive=True, repo_type=self.kind.api):
            if isinstance(entry, RepoFile):
                # The blob of a file in LFS is its pointer.
                sha256 = entry.lfs.sha256 if entry.lfs else None
                yield RemoteFile(entry.path, entry.size, sha256, None if sha256 else entry.blob_id)

    def _commit(self, repository: str, revision: str) -> str | None:
        return self._api().repo_info(repository, repo_type=self.kind.api, revision=revision).sha

    def _download(self, repository: str, revision: str, files: Sequence[RemoteFile], folder: Path) -> None:
        (folder / SCRATCH).mkdir(exist_ok=True)
        with no_bars(), ThreadPoolExecutor(WORKERS) as workers:
            jobs = [workers.submit(self._download_file, repository, revision, file, folder) for file in files]
            for job in jobs:
                job.result()

    def _download_file(self, repository: str, revision: str, file: RemoteFile, folder: Path) -> None:
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils._headers import build_hf_headers

        part = folder / SCRATCH / f"{file.path}.part"
        if part.exists() and part.stat().st_size > file.size:
            part.unlink()
        part.parent.mkdir(parents=True, exist_ok=True)
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as stream:
            http_get(
                self._address(repository, file.path, revision), stream,
                resume_size=stream.tell(), expected_size=file.size, headers=build_hf_headers(library_name="qwen-job"),
            )  # fmt: skip
        part.replace(folder / file.path)

    def _address(self, repository: str, path: str, revision: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(repository, path, repo_type=self.kind.api, revision=revision, endpoint=self.endpoint)

    def _cached(self, repository: str, revision: str) -> Path:
        return Path(
            self._api().snapshot_download(repository, revision=revision, local_files_only=True, repo_type=self.kind.api)
        )

    def _status(self, error: Exception) -> int | None:
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

        if isinstance(error, GatedRepoError):
            return 403
        cause = error if isinstance(error, HfHubHTTPError) else error.__cause__
        return cause.response.status_code if isinstance(cause, HfHubHTTPError) else None


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Draw no progress bars in the block."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    drawn = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if drawn:
            enable_progress_bars()
