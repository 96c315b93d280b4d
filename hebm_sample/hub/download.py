"""Downloading from the Hub: one call for all files of a model.

The client is called with the exact names of the files and one commit for all of them; with a full
commit and a warm cache it sends nothing.
"""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hebm_sample import __version__
from hebm_sample.errors import HubError
from hebm_sample.hub import client

__all__ = ["Source"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A repository at a revision, and how to reach it.

    Arguments:
        repo_id: `owner/name`.
        revision: Branch, tag or commit; None for the default branch.
        cache_dir: Of the Hub client; None for its own default.
        local_files_only: Send no request.
        token: Of the Hub client.
    """

    repo_id: str
    revision: str | None
    cache_dir: str | os.PathLike[str] | None
    local_files_only: bool
    token: str | bool | None = field(repr=False)

    def at(self, repo_id: str, revision: str | None) -> "Source":
        """The same way to another repository or revision."""
        return dataclasses.replace(self, repo_id=repo_id, revision=revision)

    @property
    def is_offline(self) -> bool:
        """Whether requests are forbidden, by the caller or by HF_HUB_OFFLINE."""
        from huggingface_hub import constants

        return self.local_files_only or bool(constants.HF_HUB_OFFLINE)

    @property
    def remedy(self) -> str:
        """What the user can do about a corrupt file in the cache."""
        where = "" if self.cache_dir is None else f" --cache-dir {os.fspath(self.cache_dir)}"
        removal = f"remove it with `hf cache rm model/{self.repo_id}{where}`"
        if self.is_offline:
            return f"load it once with the network allowed, which downloads it anew, or {removal}"
        return f"{removal} and try again; if it stays so, tell the model's publisher"

    def download(self, files: Sequence[str], *, force: bool = False) -> Path:
        """The snapshot folder with those of the files that the repository has.

        Raises:
            UserInputError: The repository's name is malformed.
            HubError: Anything else that the client can raise.
        """
        from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

        try:
            folder = snapshot_download(
                self.repo_id,
                revision=self.revision,
                cache_dir=None if self.cache_dir is None else os.fspath(self.cache_dir),
                local_files_only=self.local_files_only,
                token=self.token,
                allow_patterns=list(files),
                force_download=force,
                library_name="hebm-sample",
                library_version=__version__,
                endpoint=client.ENDPOINT,
            )
        except (
            Exception
        ) as error:  # OSError, ValueError, HTTPError, AssertionError: no common base
            failure = client.in_one_sentence(
                error, self.repo_id, self.revision, offline=self.is_offline, done="downloaded"
            )
        else:
            return Path(folder)
        raise failure  # outside the handler: without the client's exception as context

    def refetch(self, folder: Path, filename: str, fault: str) -> None:
        """Throw one file of a snapshot folder away and download it again.

        Raises:
            HubError: That failed.
        """
        _log.warning("%s; downloading it again", fault)
        try:
            # The entry goes first: where the cache has no symlinks, a forced download keeps it.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(folder / filename)
            self.download((filename,), force=True)
        except HubError as error:
            raise HubError(f"{fault}; it could not be replaced: {error}") from error
        except OSError as error:
            raise HubError(f"{fault}; it could not be replaced: {error.strerror}") from error
