"""`hebm-train push`: a model folder to a Hub repository, as one commit.

What is published was checked as a stranger would check it: the files match the folder's row, the
weights load into the model of `config.json`, the card says under which licence. Exactly the bytes
that were checked are sent. The printed row pins the commit; pasted into a `weights_manifest.json`
it makes the model one that is known by name.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.printing import say
from hebm_sample.errors import UserInputError, WeightsError
from hebm_sample.hub.card import SAMPLES_NAME, card_for
from hebm_sample.hub.manifest import MANIFEST_NAME, ModelRow, read_row
from hebm_sample.io.files import MAX_FILE_BYTES, read_capped

__all__ = ["push", "push_folder"]

MAX_CARD_BYTES, MAX_IMAGE_BYTES = 1_000_000, 2**24
CARD_NAME = "README.md"


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    branch: str | None = None,
    private: bool = False,
    token: str | bool | None = None,
) -> ModelRow:
    """Check a model folder and publish it; returns its row, pinned to the commit.

    Arguments:
        folder: As `hebm-train export` writes it.
        repo_id: `owner/name`.
        branch: Of the repository; its default branch if None.
        private: Of a repository that is made now.
        token: Of the Hub client. Never shown.

    Raises:
        UserInputError: There is no such folder, or its card or licence is not fit to be published.
        WeightsError: The folder's files are not those of its row, or do not load.
        HubError: The Hub did not accept them.
    """
    from hebm_sample.hub.upload import publish

    folder = Path(os.path.expanduser(folder)).absolute()
    row, files = _checked_files(folder)
    pinned = _pinned(row, repo_id, "0" * 40)  # before anything is sent
    files |= _card_files(folder, repo_id)
    commit = publish(files, repo_id, branch=branch, private=private, token=token)
    return replace(pinned, revision=commit)


def _pinned(row: ModelRow, repo_id: str, commit: str) -> ModelRow:
    try:
        return replace(row, repo_id=repo_id, revision=commit, folder=None)
    except UserInputError as error:
        raise UserInputError(f"--repo-id is {ascii(repo_id)}; it must be owner/name") from error


def _checked_files(folder: Path) -> tuple[ModelRow, dict[str, bytes]]:
    """The folder's row, and its files' bytes, after the model was loaded from them."""
    from hebm_sample.hub.load import build_model, load_encoder

    if not folder.is_dir():
        raise UserInputError(f"there is no folder {folder}; give a model folder")
    if not (folder / MANIFEST_NAME).exists() and (folder / "model" / MANIFEST_NAME).exists():
        raise UserInputError(f"{folder} is a training run; its model is in {folder / 'model'}")
    model = build_model(folder)
    row = model.resolved.row
    if "encoder.safetensors" in row.files:
        load_encoder(model.resolved, model.config)
    described = (model.config.name, model.config.generator.image_size)
    if described != (row.name, row.resolution):
        raise WeightsError(
            f"{folder / MANIFEST_NAME} is of {row.name} at {row.resolution}, config.json of "
            f"{described[0]} at {described[1]}; export the model again"
        )
    others = sorted(set(row.files) - set(model.resolved.filenames))
    if others:
        raise WeightsError(
            f"{folder / MANIFEST_NAME} lists {others[0]}, which no model consists of; "
            "export the model again"
        )
    files = {name: _bytes_of(model.resolved.path(name), row) for name in model.resolved.filenames}
    manifest = read_capped(folder / MANIFEST_NAME, MAX_CARD_BYTES)
    if read_row(folder) != row or read_capped(folder / MANIFEST_NAME, MAX_CARD_BYTES) != manifest:
        raise _changed(folder / MANIFEST_NAME)
    return row, files | {MANIFEST_NAME: manifest}


def _bytes_of(path: Path, row: ModelRow) -> bytes:
    data = read_capped(path, MAX_FILE_BYTES)
    if hashlib.sha256(data).hexdigest() != row.files[path.name].sha256:
        raise _changed(path)
    return data


def _changed(path: Path) -> WeightsError:
    return WeightsError(f"{path} changed while it was checked; publish a folder at rest")


def _card_files(folder: Path, repo_id: str) -> dict[str, bytes]:
    """The card, and the image that it shows."""
    files, image = {CARD_NAME: _card(folder, repo_id)}, folder / SAMPLES_NAME
    if f"]({SAMPLES_NAME})".encode() in files[CARD_NAME] and image.is_file():
        files[SAMPLES_NAME] = read_capped(image, MAX_IMAGE_BYTES)
    return files


def _card(folder: Path, repo_id: str) -> bytes:
    """The card, its example naming the repository; refused without a licence."""
    from hebm_sample.hub.save import UNSTATED_LICENCE

    path = folder / CARD_NAME
    text = read_capped(path, MAX_CARD_BYTES).decode("utf-8", errors="replace")
    fields = _front_matter(text, path)
    stated = str(fields.get("license_name" if fields.get("license") == "other" else "license"))
    unstated = UNSTATED_LICENCE.partition(":")[0]
    if stated in ("", "None", unstated):
        raise UserInputError(
            f"{path} states no licence; export the model with --licence, or write `license:` "
            "(and, for `other`, `license_name:`) into the card"
        )
    return card_for(text, repo_id).encode()


def _front_matter(text: str, path: Path) -> Mapping[str, object]:
    """What the card says about the model in YAML, read as the Hub reads it."""
    if not text.startswith("---"):
        return {}
    from huggingface_hub import ModelCard

    try:
        return ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except Exception as error:  # of the YAML parser, which is the client's dependency, not ours
        raise UserInputError(f"{path} begins with YAML that cannot be read; correct it") from error


@click.command(cls=OneLineErrors)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--repo-id", required=True, metavar="OWNER/NAME", help="Repository on the Hub.")
@click.option("--private", is_flag=True, help="Make a new repository a private one.")
@click.option(
    "--revision", "branch", metavar="BRANCH", help="Branch; made if need be.  [default: main]"
)
@click.option(
    "--token", metavar="TOKEN", help="Instead of HF_TOKEN or the one that `hf auth login` stored."
)
@click.option("--quiet", is_flag=True, help="No progress bar; print nothing but the row.")
def push(
    folder: Path, repo_id: str, private: bool, branch: str | None, token: str | None, quiet: bool
) -> None:
    """Publish a model FOLDER on the Hub in one commit.

    Prints the row for a weights_manifest.json, pinned to the commit.
    """
    if quiet or not sys.stderr.isatty():
        # huggingface_hub reads this when it is imported, which is not before the next lines.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    row = push_folder(folder, repo_id, branch=branch, private=private, token=token)
    if not quiet:
        size = sum(file.size for file in row.files.values()) / 2**20
        say(
            f"{repo_id}: commit {row.revision}, {len(row.files)} files, {size:.2f} MiB; "
            f"hebm-sample --dataset {repo_id}{f' --revision {branch}' if branch else ''}",
            err=True,
        )
    say(json.dumps(row.to_dict(), indent=2))
