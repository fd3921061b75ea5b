"""Push a folder of files to a repository of models: created private, resumed, never made public by accident.

huggingface_hub and modelscope-hub upload: they hash, skip what the hub has already, retry and commit. What is refused
is ours: a repository that others can read unless that is asked for, and a push without a login.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from qwen_job.errors import EnvironmentFault, UsageError
from qwen_job.facts.model_names import clean_name
from qwen_job.remote.hub import MODEL, Hub, TransferError, warnings_to
from qwen_job.remote.hub_huggingface import HuggingFace, no_bars
from qwen_job.remote.hub_modelscope import ModelScope
from qwen_job.resources import user_cache
from qwen_job.storage import Notify

_MESSAGE = "Upload a model trained with qwen-job"
_FORMS = "write hf:OWNER/NAME for Hugging Face or ms:OWNER/NAME for ModelScope"


class Destination(Hub):
    """A hub that can be written to. ``login``: the command that logs in."""

    login: str

    @abstractmethod
    def has_token(self) -> bool:
        """Tell whether the user is logged in, without asking the hub."""

    @abstractmethod
    def _is_private(self, repository: str) -> bool | None:
        """Return whether only its owners can read a repository, None if it does not exist."""

    @abstractmethod
    def _create(self, repository: str, private: bool) -> None: ...

    @abstractmethod
    def _upload(self, repository: str, folder: Path, names: Sequence[str]) -> None: ...

    @abstractmethod
    def page(self, repository: str) -> str:
        """Return the address at which a browser shows the repository."""

    def _access(self) -> str:
        return f"check that the token may write there, and set {self.token_variable} or run '{self.login}'"

    def _where(self, revision: str) -> str:
        return f"on {self.endpoint}; check the name and that the token may write there"

    def push(
        self, repository: str, folder: Path, names: Sequence[str], *, public: bool = False, progress: Notify
    ) -> None:
        """Upload the files ``names`` of ``folder``; what the hub has already is not sent again.

        ``progress`` gets the library's warnings, such as its retries.

        Raises:
            UsageError: the repository is public, and ``public`` is not set.
            EnvironmentFault: no login, the library is not installed, or the hub is unreachable; to resume, repeat it.
            ModelError: the hub denies access.
        """
        self.require_login()
        try:
            with self._faults(repository, self.default_revision), warnings_to(self.package, progress):
                private = self._is_private(repository)
                if private is None:
                    self._create(repository, not public)
                elif not private and not public:
                    raise UsageError(
                        f"{repository}: is public on {self.endpoint}: add --public, or push to another name"
                    )
                self._upload(repository, folder, names)
        except TransferError as error:
            raise EnvironmentFault(
                f"{repository}: {self.endpoint}: {error}; the same command resumes what was uploaded"
            ) from error

    def require_login(self) -> None:
        """Raise an EnvironmentFault where a push cannot begin.

        Raises:
            EnvironmentFault: the library is not installed, its network use is switched off, or there is no token.
        """
        if not self.installed:
            raise EnvironmentFault(f"{self.name} needs the package {self.package}: {self.install}")
        if variable := self.offline:
            raise EnvironmentFault(f"{variable} forbids network access: unset it to push")
        if not self.has_token():
            raise EnvironmentFault(f"{self.name}: not logged in: set {self.token_variable} or run '{self.login}'")


class ToHuggingFace(HuggingFace, Destination):
    """huggingface.co, or what HF_ENDPOINT names."""

    login = "hf auth login"

    def has_token(self) -> bool:
        """Tell whether there is a token."""
        from huggingface_hub import get_token

        return bool(get_token())

    def _is_private(self, repository: str) -> bool | None:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            return bool(self._api().repo_info(repository, repo_type="model").private)
        except RepositoryNotFoundError:
            return None

    def _create(self, repository: str, private: bool) -> None:
        self._api().create_repo(repository, repo_type="model", private=private, exist_ok=True)

    def _upload(self, repository: str, folder: Path, names: Sequence[str]) -> None:
        with no_bars():
            self._api().upload_folder(
                repo_id=repository, folder_path=folder, repo_type="model", allow_patterns=list(names),
                commit_message=_MESSAGE,
            )  # fmt: skip

    def page(self, repository: str) -> str:
        """Return the repository's page."""
        return f"{self.endpoint}/{repository}"


class ToModelScope(ModelScope, Destination):
    """modelscope.cn, or what MODELSCOPE_ENDPOINT names."""

    login = "modelscope login --token TOKEN"

    def has_token(self) -> bool:
        """Tell whether there is a token."""
        from modelscope_hub import HubConfig

        return bool(HubConfig().token)

    def _is_private(self, repository: str) -> bool | None:
        from modelscope_hub.constants import Visibility
        from modelscope_hub.errors import NotExistError

        try:
            return self._api().get_repo(repository, "model").visibility == Visibility.PRIVATE
        except NotExistError:
            return None

    def _create(self, repository: str, private: bool) -> None:
        self._api().create_repo(repository, "model", visibility="private" if private else "public")

    def _upload(self, repository: str, folder: Path, names: Sequence[str]) -> None:
        key = hashlib.sha256(f"{self.endpoint} {repository} {folder}".encode()).hexdigest()[:16]
        record = user_cache() / "push" / f"{key}.json"  # of what was sent; by default it is put into the folder
        record.parent.mkdir(parents=True, exist_ok=True)
        # It prints a report.
        with contextlib.redirect_stdout(io.StringIO()):
            self._api().upload_folder(
                repository, "model", folder, allow_patterns=list(names), commit_message=_MESSAGE, disable_tqdm=True,
                tracker_path=record,
            )  # fmt: skip

    def page(self, repository: str) -> str:
        """Return the repository's page."""
        return f"{self.endpoint}/models/{repository}"


_HUBS: dict[str, Callable[[], Destination]] = {
    "hf": lambda: ToHuggingFace(MODEL), "huggingface": lambda: ToHuggingFace(MODEL),
    "ms": lambda: ToModelScope(MODEL), "modelscope": lambda: ToModelScope(MODEL),
}  # fmt: skip


def destination(name: str) -> tuple[Destination, str]:
    """Return the hub and the repository of ``hf:OWNER/NAME`` or ``ms:OWNER/NAME``.

    Raises:
        UsageError: it has another form.
    """
    prefix, _, repository = name.partition(":")
    if prefix.lower() not in _HUBS or repository.startswith("//"):
        raise UsageError(f"REPO: {name!r}: {_FORMS}")
    hub = _HUBS[prefix.lower()]()
    try:
        return hub, clean_name(repository, hub.name)
    except ValueError:
        raise UsageError(f"REPO: {name!r}: {_FORMS}") from None
