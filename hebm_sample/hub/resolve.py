"""From what the user typed to a folder whose files are the ones the manifest describes.

Order: a local folder (checked against its own manifest row); a name of the package's manifest,
first as the embedded copy, then from the Hub's cache, then from the Hub at the pinned commit; an
`owner/name` repository (checked against the row it carries). A file is used only after its size
and sha256 were compared: the Hub client returns a corrupted body without a word. What is used are
the bytes that were compared (`ResolvedModel.read`), so that a file that is changed in between is
not. Only the names in `manifest.KNOWN_FILES` are ever opened, so a pickle lying beside them is
never read.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hebm_sample.errors import UserInputError, WeightsError
from hebm_sample.hub.client import check_arguments
from hebm_sample.hub.download import Source
from hebm_sample.hub.manifest import KNOWN_FILES, MANIFEST_NAME, Manifest, ModelRow, read_row
from hebm_sample.io.extras import reinstall_hint
from hebm_sample.io.files import is_run_folder, means_place, read_regular, short

__all__ = ["EMBEDDED", "ResolvedModel", "is_folder", "locate", "resolve"]

EMBEDDED = Path(__file__).resolve().parents[1] / "weights"
_HUB_ID = re.compile(r"[^/\\\s]+/[^/\\\s]+")


@dataclass(frozen=True)
class ResolvedModel:
    """A model's folder, and the row that its files must match.

    Arguments:
        folder: Where the files lie. Take them with `read`, which checks them.
        row: Names, sizes and digests.
        source: Where it was found.
        revision: The commit, for a model from the Hub.
        remedy: What the user can do about a corrupt file.
        refetch: Downloads a corrupt file once more; None where that cannot be done.
        shared: Where the files lie that this model shares with another and `folder` lacks.
    """

    folder: Path
    row: ModelRow
    source: Literal["folder", "embedded", "hub"]
    revision: str | None = None
    remedy: str = ""
    refetch: Callable[[str, str], None] | None = field(default=None, repr=False, compare=False)
    shared: Mapping[str, Path] = field(default_factory=dict[str, Path], repr=False, compare=False)
    _verified: set[str] = field(default_factory=set[str], init=False, repr=False, compare=False)

    def path(self, filename: str) -> Path:
        """The path of one model file; size and sha256 are checked when it is first asked for.

        Whoever opens it may find other bytes than were checked: what is loaded comes from `read`.

        Raises:
            UserInputError: This is no file that a model consists of.
            WeightsError: The model has no such file, or it is missing or corrupt.
            HubError: It was corrupt and could not be downloaded again.
        """
        if filename not in self._verified:
            self.read(filename)
        return self.place(filename)

    def read(self, filename: str) -> bytes:
        """The bytes of one model file, read once: those whose size and sha256 agree with the row.

        Raises as `path`.
        """
        self._check_listed(filename)
        data, fault = self._read(filename)
        if fault is not None and self.refetch is not None:
            self.refetch(filename, fault)
            data, again = self._read(filename)
            fault = again and f"{again}, also after asking the Hub for it again"
        if fault is not None:
            raise WeightsError(f"{fault}; {self.remedy}")
        self._verified.add(filename)
        return data

    def _check_listed(self, filename: str) -> None:
        if filename not in KNOWN_FILES:
            raise UserInputError(
                f"{short(filename)} is no model file; a model has {', '.join(KNOWN_FILES)}"
            )
        if filename not in self.row.files:
            raise WeightsError(
                f"the model {self.row.name} in {self.folder} was published without {filename}; "
                f"it has {', '.join(sorted(self.row.files))}"
            )

    @property
    def filenames(self) -> tuple[str, ...]:
        """The files that this model consists of."""
        return tuple(name for name in KNOWN_FILES if name in self.row.files)

    def place(self, filename: str) -> Path:
        """Where one model file lies; nothing is checked."""
        return self.shared.get(filename, self.folder) / filename

    def fault(self, filename: str) -> str | None:
        """What is wrong with a listed file as it lies on the disk, in words; None if nothing is.

        Nothing is repaired.
        """
        return self._read(filename)[1]

    def _read(self, filename: str) -> tuple[bytes, str | None]:
        """(bytes, what is wrong with them)."""
        path, row = self.place(filename), self.row.files[filename]
        try:
            data = read_regular(path, row.size + 1)
            size = path.stat().st_size
        except FileNotFoundError:
            return b"", f"{path} is missing"
        except OSError as error:
            return b"", f"{path} cannot be read ({error.strerror or error})"
        if data is None:
            return b"", f"{path} is no regular file"
        if len(data) != row.size:
            size = max(size, len(data)) if len(data) > row.size else len(data)
            return b"", f"{path} is corrupt: it has {size} bytes and should have {row.size}"
        digest = hashlib.sha256(data).hexdigest()
        if digest != row.sha256:
            return b"", f"{path} is corrupt: its sha256 is {digest} and should be {row.sha256}"
        return data, None


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    resolution: int | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> ResolvedModel:
    """Find a model; every file but the encoder (checked on first use) is verified on return.

    Arguments:
        name_or_path: A manifest name, maybe with its resolution as in `celebahq-64`, a model
            folder, or a Hub repository `owner/name`.
        resolution: Side of the images in pixels, where a name has several.
        revision: Branch, tag or commit of a model from the Hub; None for the manifest's commit.
        cache_dir: Of the Hub client; None for its own default.
        local_files_only: Send no request.
        token: Of the Hub client: None for the stored one, False for none. Never shown.

    Raises:
        UserInputError: There is no such model, folder or resolution, or an argument is malformed.
        WeightsError: A file is missing or corrupt.
        HubError: The Hub did not deliver.
    """
    model = locate(
        name_or_path,
        resolution=resolution,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
    )
    for filename in model.filenames:
        if filename != "encoder.safetensors":
            model.path(filename)
    return model


def locate(
    name_or_path: str | os.PathLike[str],
    *,
    resolution: int | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> ResolvedModel:
    """As `resolve`, with none of the files checked yet."""
    name = _checked_name(name_or_path)
    check_arguments(revision, token)
    manifest = Manifest.load()
    if not _is_of_a_model(name_or_path):
        name, resolution = _with_side(manifest, name, resolution)
    known = any(row.name == name for row in manifest.models)
    folder = Path(os.path.expanduser(name))
    source = Source("", None, cache_dir, local_files_only, token)
    if _means_folder(name_or_path, folder, known):
        model = _from_folder(folder, name, revision)
    elif known:
        model = _from_manifest(manifest, manifest.find(name, resolution), source, revision)
    elif _HUB_ID.fullmatch(name):
        model = _from_hub(source.at(name, revision))
    else:
        manifest.find(name)  # raises, with the names that exist
        raise AssertionError(name)
    if resolution is not None and model.row.resolution != resolution:
        raise UserInputError(
            f"{short(name)} makes images of {model.row.resolution} pixels, "
            f"not {short(resolution)}; leave the resolution out"
        )
    return model


def is_folder(name: str) -> bool:
    """Whether a model's name, as somebody typed it, stands for a folder that is there."""
    folder, manifest = Path(os.path.expanduser(name)), Manifest.load()
    plain = name if _is_of_a_model(name) else _with_side(manifest, name, None)[0]
    known = any(row.name == plain for row in manifest.models)
    return os.path.isdir(folder) and (not known or _is_of_a_model(name))


def _is_of_a_model(given: str | os.PathLike[str]) -> bool:
    """Whether it is a folder of a model or of a run, or said to be a folder."""
    folder = Path(os.path.expanduser(given))
    if not isinstance(given, str):
        return True
    # Names that are too long for a file are no folder's.
    return os.path.isdir(folder) and ((folder / MANIFEST_NAME).exists() or is_run_folder(folder))


def _with_side(manifest: Manifest, name: str, resolution: int | None) -> tuple[str, int | None]:
    """Name and resolution of "celebahq-64", unless that is a name by itself."""
    plain, _, side = name.rpartition("-")
    sides = {str(row.resolution): row.resolution for row in manifest.models if row.name == plain}
    named = any(row.name == name for row in manifest.models)
    if named or side not in sides or resolution not in (None, sides[side]):
        return name, resolution
    return plain, sides[side]


def _checked_name(name_or_path: str | os.PathLike[str]) -> str:
    name = os.fspath(name_or_path)
    if not name or "\0" in name or len(name) > 4096:
        raise UserInputError(
            f"{short(name)} cannot name a model; give a name, a model folder or owner/name"
        )
    return name


def _means_folder(given: str | os.PathLike[str], folder: Path, known: bool) -> bool:
    """Whether a local folder was meant; raises if so and it does not exist.

    A manifest name wins over a folder that happens to be called so and holds no model, such as
    the one that yesterday's images went to.
    """
    text = os.fspath(given)
    if os.path.isdir(folder):
        return not known or (folder / MANIFEST_NAME).exists()
    if os.path.isfile(folder) and not known:
        raise UserInputError(
            f"{short(text)} is a file; give the model folder, with config.json and *.safetensors"
        )
    if means_place(text) or folder.is_absolute() or not isinstance(given, str):
        raise UserInputError(f"there is no folder {short(text)}; give an existing model folder")
    return False


def _from_folder(folder: Path, name: str, revision: str | None) -> ResolvedModel:
    if revision is not None:
        raise UserInputError(f"{short(name)} is a folder and has no revisions; leave it out")
    if is_run_folder(folder) and not (folder / MANIFEST_NAME).exists():
        folder = _model_of_run(folder)
    remedy = "copy or export the model again"
    return ResolvedModel(folder, read_row(folder), "folder", remedy=remedy)


def _model_of_run(run: Path) -> Path:
    """The model that a training run ended with."""
    if not (run / "model" / MANIFEST_NAME).exists():
        raise UserInputError(
            f"{short(str(run))} is a training run that has not ended; go on with --resume, or "
            f"make a model of its newest checkpoint: hebm-train export --run {run} --out DIR"
        )
    return run / "model"


def _shared_files(manifest: Manifest, row: ModelRow) -> dict[str, Path]:
    """Embedded folders of other models that hold files of `row` under the same digest.

    Two resolutions of a model differ in the image decoder only; the package carries their
    encoder and energies once.
    """
    assert row.folder is not None
    missing = {k: v for k, v in row.files.items() if not (EMBEDDED / row.folder / k).exists()}
    return {
        name: EMBEDDED / other.folder
        for other in manifest.models
        for name, file in missing.items()
        if other.folder is not None
        and other.files.get(name) == file
        and (EMBEDDED / other.folder / name).exists()
    }


def _from_manifest(
    manifest: Manifest, row: ModelRow, source: Source, revision: str | None
) -> ResolvedModel:
    if row.repo_id is not None and revision not in (None, row.revision):
        return _from_hub(source.at(row.repo_id, revision))  # other files than the row's
    if row.folder is not None and (EMBEDDED / row.folder).is_dir():
        if revision not in (None, row.revision):
            raise UserInputError(
                f"{row.name} comes with the package and has no revisions; leave it out"
            )
        shared = _shared_files(manifest, row)
        return ResolvedModel(
            EMBEDDED / row.folder, row, "embedded", remedy=reinstall_hint(), shared=shared
        )
    if row.repo_id is None:
        raise WeightsError(
            f"the files of {row.name} are not in this installation; {reinstall_hint()}"
        )
    return _from_hub(source.at(row.repo_id, row.revision), row)


def _from_hub(source: Source, row: ModelRow | None = None) -> ResolvedModel:
    """Without a row, the repository's own is read, from the commit its files come from."""
    listed = KNOWN_FILES if row is None else tuple(f for f in KNOWN_FILES if f in row.files)
    folder = source.download(listed if row is not None else (*listed, MANIFEST_NAME))
    pinned = source.at(source.repo_id, folder.name)
    refetch = None if source.is_offline else functools.partial(pinned.refetch, folder)
    if row is None:
        try:
            row = read_row(folder)
        except WeightsError as error:
            if refetch is None:
                raise WeightsError(f"{error}; {source.remedy}") from error
            refetch(MANIFEST_NAME, str(error))
            row = read_row(folder)
    return ResolvedModel(folder, row, "hub", folder.name, source.remedy, refetch)
