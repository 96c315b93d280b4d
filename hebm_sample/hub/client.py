"""The Hub client, kept at arm's length: its address, and its failures in one sentence.

The client is imported when first needed (it takes half a second). Its errors have no common base,
and their texts quote the server and the headers: none of that text and no exception chain reaches
the user, because a token could be in it.
"""

import os
import re

from hebm_sample.errors import HebmError, HubError, UserInputError
from hebm_sample.io.files import short

__all__ = ["check_arguments", "in_one_sentence", "reason", "status_of"]

_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")

# None is the client's own (HF_ENDPOINT, which it reads once, on import).
ENDPOINT: str | None = None


def check_arguments(revision: str | None, token: str | bool | None) -> None:
    """`UserInputError` for a revision or a token that cannot be one; the token is not shown."""
    # The client puts a branch's name into a path of its cache, and the token into a header.
    sane = revision is None or (_REVISION.fullmatch(revision) and ".." not in revision)
    if not sane:
        raise UserInputError(
            f"revision is {short(revision)}; it must be a branch, a tag or a commit (40 hex)"
        )
    if isinstance(token, str) and not re.fullmatch(r"[!-~]+", token):
        raise UserInputError("the token is empty or holds spaces or characters no token has")


def in_one_sentence(
    error: Exception, repo_id: str, revision: str | None, *, offline: bool, done: str
) -> HebmError:
    """The package's error for one of the client's, subclasses before their bases.

    Arguments:
        error: What the client raised.
        offline: Whether requests were forbidden.
        done: What was to be done with the repository: "downloaded", "published".
    """
    from huggingface_hub import errors

    what = repo_id + (f" at {revision}" if revision else "")
    if isinstance(error, errors.HFValidationError):
        return UserInputError(
            f"{short(repo_id)} is no Hub repository; those are called owner/name"
        )
    if isinstance(error, errors.GatedRepoError):
        return HubError(
            f"{what} is gated: accept its terms at its page on the Hub, then `hf auth login`"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(
            f"the Hub shows no repository {repo_id}: check the name; if it is private, "
            "`hf auth login` or pass a token that may read it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{repo_id} has no revision {revision or 'main'}")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return HubError(f"{what} lacks a file that it lists; tell the model's publisher")
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _not_cached(error, what, offline)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(f"{what} cannot be {done} while HF_HUB_OFFLINE is set: unset it")
    if isinstance(error, errors.LocalTokenNotFoundError):
        return HubError("no token is stored on this machine: `hf auth login`, or leave token out")
    return HubError(f"{what} could not be {done}: {reason(error)}")


def _not_cached(error: Exception, what: str, offline: bool) -> HubError:
    if offline:
        return HubError(
            f"{what} is not complete in the cache and no request may be sent "
            "(local_files_only or HF_HUB_OFFLINE): load it once with the network allowed"
        )
    cause = reason(error.__cause__ or error)
    return HubError(f"{what} is not complete in the cache, and the Hub did not deliver: {cause}")


def reason(error: BaseException) -> str:
    """Why a transfer failed, without the client's or the server's own words."""
    from huggingface_hub.errors import FileMetadataError
    from huggingface_hub.utils import httpx

    status = status_of(error)
    if status is not None:
        advice = {
            401: "log in with `hf auth login`",
            403: "the token may not do that",
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
    if isinstance(error, RuntimeError) and os.path.expanduser("~") == "~":
        return "there is no home folder for its cache; set HF_HOME, or name a cache folder"
    if error.__cause__ is not None:  # the client's own wrapping of any of these
        return reason(error.__cause__)
    return f"the client failed with {type(error).__name__}; check HF_ENDPOINT and try again"


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the server answered; None if it was not that."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
