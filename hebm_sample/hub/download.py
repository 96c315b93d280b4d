"""The Hub client, kept at arm's length: one call that downloads, and its failures in one sentence.

The client is imported when first needed (it takes half a second). It is called with the exact
names of the files and one commit for all of them; with a full commit and a warm cache it sends
nothing. Its errors have no common base, and their texts quote the server and the headers: none of
that text and no exception chain reaches the user, because a token could be in it.
"""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hebm_sample import __version__
from hebm_sample.errors import HebmError, HubError, UserInputError
from hebm_sample.hub.files import short

__all__ = ["Source"]

_log = logging.getLogger(__name__)

# None is the client's own (HF_ENDPOINT, which it reads once, on import).
_ENDPOINT: str | None = None


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
        removal = f"remove it with `hf cache rm model/{self.repo_id}`"
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
                endpoint=_ENDPOINT,
            )
        except (
            Exception
        ) as error:  # OSError, ValueError, HTTPError, AssertionError: no common base
            failure = _in_one_sentence(error, self)
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


def _in_one_sentence(error: Exception, source: Source) -> HebmError:
    """The package's error for one of the client's, subclasses before their bases."""
    from huggingface_hub import errors

    what = source.repo_id + (f" at {source.revision}" if source.revision else "")
    if isinstance(error, errors.HFValidationError):
        return UserInputError(
            f"{short(source.repo_id)} is no Hub repository; those are called owner/name"
        )
    if isinstance(error, errors.GatedRepoError):
        return HubError(
            f"{what} is gated: accept its terms at its page on the Hub, then `hf auth login`"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(
            f"the Hub shows no repository {source.repo_id}: check the name; if it is private, "
            "`hf auth login` or pass a token that may read it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{source.repo_id} has no revision {source.revision or 'main'}")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return HubError(f"{what} lacks a file that it lists; tell the model's publisher")
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _not_cached(error, what, source)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(
            f"{what} is not complete in the cache, and HF_HUB_OFFLINE is set: unset it"
        )
    if isinstance(error, errors.LocalTokenNotFoundError):
        return HubError("no token is stored on this machine: `hf auth login`, or leave token out")
    return HubError(f"{what} could not be downloaded: {_reason(error)}")


def _not_cached(error: Exception, what: str, source: Source) -> HubError:
    if source.is_offline:
        return HubError(
            f"{what} is not complete in the cache and no request may be sent "
            "(local_files_only or HF_HUB_OFFLINE): load it once with the network allowed"
        )
    reason = _reason(error.__cause__ or error)
    return HubError(f"{what} is not complete in the cache, and the Hub did not deliver: {reason}")


def _reason(error: BaseException) -> str:
    """Why a transfer failed, without the client's or the server's own words."""
    from huggingface_hub.errors import FileMetadataError
    from huggingface_hub.utils import httpx

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        advice = {
            401: "log in with `hf auth login`",
            403: "the token may not read it",
            429: "too many requests, wait a little",
        }
        return f"the server answered {status}; {advice.get(status, 'try again later')}"
    if isinstance(error, httpx.TimeoutException):
        return "the server took too long to answer; check the network and try again"
    if isinstance(error, (httpx.ConnectError, httpx.ProxyError)):
        return "no connection; check the network, HF_ENDPOINT and the proxy settings"
    if isinstance(error, httpx.HTTPError):
        return "the connection broke off; try again"
    if isinstance(error, FileMetadataError):
        return "the answers are not those of a Hub; check HF_ENDPOINT and the proxy settings"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{os.strerror(error.errno)}; check the cache folder"
    return f"the client failed with {type(error).__name__}; check HF_ENDPOINT and try again"
