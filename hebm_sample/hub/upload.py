"""Publishing to the Hub: all files in one commit, or none.

The commit names the one that it follows, so of two publishers at a time the second is refused
instead of mixing its files with the first one's. Afterwards the commit's list of files is compared
with what was sent: a repository's .gitignore can leave files out without an error.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hebm_sample import __version__
from hebm_sample.errors import HebmError, HubError, UserInputError
from hebm_sample.hub import client
from hebm_sample.hub.manifest import KNOWN_FILES

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["publish"]


def publish(
    files: Mapping[str, bytes],
    repo_id: str,
    *,
    branch: str | None = None,
    private: bool = False,
    token: str | bool | None = None,
) -> str:
    """Make the repository if there is none, and commit the files; returns the commit.

    Model files that the repository has and `files` lacks are deleted in the same commit; others
    are kept. Files that are there already make no new commit.

    Arguments:
        files: Names and contents.
        repo_id: `owner/name`.
        branch: Made from the default branch if there is none such; the default branch if None.
        private: Make a new repository private; one that exists must be private already.
        token: Of the Hub client. Never shown.

    Raises:
        UserInputError: The repository's name is malformed, or it is public and `private` is set.
        HubError: Anything else that the client can raise, or the commit lacks a file.
    """
    client.check_arguments(branch, token)
    if branch is not None and re.fullmatch("[0-9a-f]{40}", branch):
        raise UserInputError(f"{branch} is a commit; name a branch to publish to")
    from huggingface_hub import HfApi

    api = HfApi(
        endpoint=client.ENDPOINT,
        token=token,
        library_name="hebm-sample",
        library_version=__version__,
    )
    failure: HebmError
    try:
        commit = _publish(api, files, repo_id, branch, private)
    except HebmError:
        raise
    except Exception as error:  # OSError, ValueError, HTTPError, RuntimeError: no common base
        failure = _in_one_sentence(error, repo_id, branch)
    else:
        fault = _fault(api, files, repo_id, commit)
        if fault is None:
            return commit
        failure = HubError(f"commit {commit} of {repo_id} was made, but {fault}; publish again")
    raise failure  # outside the handler: without the client's exception as context


def _publish(
    api: "HfApi", files: Mapping[str, bytes], repo_id: str, branch: str | None, private: bool
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api.create_repo(repo_id, private=private or None, exist_ok=True)
    if private and not api.model_info(repo_id).private:
        raise UserInputError(
            f"{repo_id} exists and is public; make it private in its settings on the Hub first, "
            "or leave --private out"
        )
    if branch is not None:
        api.create_branch(repo_id, branch=branch, exist_ok=True)
    before = api.model_info(repo_id, revision=branch)
    there = {file.rfilename for file in before.siblings or ()}
    stale = sorted((there & set(KNOWN_FILES)) - set(files))
    additions = [CommitOperationAdd(name, data) for name, data in files.items()]
    return api.create_commit(
        repo_id,
        [*additions, *(CommitOperationDelete(name) for name in stale)],
        commit_message=f"Model of hebm_sample {__version__}",
        revision=branch,
        parent_commit=before.sha,
    ).oid


def _fault(api: "HfApi", files: Mapping[str, bytes], repo_id: str, commit: str) -> str | None:
    """What is wrong with the commit: files that are missing, or whose size or digest differs."""
    from huggingface_hub.hf_api import RepoFile

    try:
        entries = list(api.list_repo_tree(repo_id, revision=commit))
    except Exception as error:
        return f"could not be read again ({client.reason(error)})"
    found = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    for name, data in files.items():
        entry = found.get(name)
        if entry is None:
            return f"lacks {name}; look into the repository's .gitignore"
        # Small files have no sha256 there; they were sent within the commit itself.
        digest = entry.lfs.sha256 if entry.lfs is not None else None
        if entry.size != len(data) or digest not in (None, hashlib.sha256(data).hexdigest()):
            return f"has other bytes in {name}"
    return None


def _in_one_sentence(error: Exception, repo_id: str, branch: str | None) -> HebmError:
    from huggingface_hub.errors import RepositoryNotFoundError

    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # what one of the client's threads raised
    status = client.status_of(error)
    what = repo_id + (f" at {branch}" if branch else "")
    if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
        return HubError(
            f"the Hub does not let you publish to {repo_id}: check the name, "
            "and `hf auth login` with a token that may write there"
        )
    if status == 412:
        return HubError(f"somebody else published to {what} meanwhile; look at it and try again")
    if status is None and isinstance(error, ValueError) and "README.md" in str(error):
        return UserInputError("the Hub refuses the metadata of the folder's README.md; correct it")
    return client.in_one_sentence(error, repo_id, branch, offline=False, done="published")
