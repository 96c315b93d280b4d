"""Which models exist, and the size and sha256 of every file they consist of.

A manifest is `{"format_version": 1, "models": [row, ...]}`. The package carries one with a row a
model; each model folder carries its own with a single row, in the same format. The Hub client
checks the length of what it downloads and not the content, so these digests are what stands
between a flipped bit and a model.

Manifests may come from strangers. Everything is checked when a row is built: file names are plain
names out of a small alphabet (no separators, no `..`, no drives, no NUL), keys are known and come
once, sizes are capped.
"""

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hebm_sample.errors import EnvironmentFailure, UserInputError, WeightsError
from hebm_sample.io.files import (
    MAX_FILE_BYTES,
    measured,
    parse_json,
    read_capped,
    short,
    write_atomically,
)

__all__ = [
    "CALIBRATION_NAME",
    "KNOWN_FILES",
    "MANIFEST_NAME",
    "MAX_CALIBRATION_BYTES",
    "MODEL_FILES",
    "WEAK",
    "FileRow",
    "Manifest",
    "ModelRow",
    "check_name",
    "list_models",
    "read_row",
    "write_manifest",
    "write_row",
]

FORMAT_VERSION = 1
WEAK = "steers weakly"  # the figure that names such variables, with commas between
MANIFEST_NAME = "weights_manifest.json"
MAX_MANIFEST_BYTES = 1_000_000

# The only names in a model folder that are ever opened, beside its manifest; a row may list more.
MODEL_FILES = ("config.json", "generator.safetensors", "prior.safetensors", "encoder.safetensors")
CALIBRATION_NAME = "calibration.json"  # which a model may carry beside them
MAX_CALIBRATION_BYTES = 64_000_000  # some 4,800 statistics; an NVAE of 36 groups has 2,600
KNOWN_FILES = (*MODEL_FILES, CALIBRATION_NAME)
REQUIRED_FILES = ("config.json", "generator.safetensors")

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PLAIN = "a plain name (1 to 100 letters, digits, '.', '_', '-'; no '..')"
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9]([\w.-]*\w)?", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserInputError(message)


def _must(condition: bool, name: str, value: object, rule: str) -> None:
    if not condition:
        raise UserInputError(f"{name} is {short(value)}; it must be {rule}")


# The checks take `object`: what JSON holds need not be what a field declares.
def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind)


def _is_integer(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_match(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_line(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def _is_plain_name(value: object) -> bool:
    text = str(value)
    return _is_match(_PLAIN_NAME, value) and ".." not in text and not text.endswith(".")


def _is_repo_id(value: object) -> bool:
    text = str(value)
    return _is_match(_REPO_ID, value) and len(text) <= 96 and ".." not in text and "--" not in text


def check_name(name: object) -> None:
    """`UserInputError` for what can be no model's name."""
    _must(_is_plain_name(name), "name", name, _PLAIN)


@dataclass(frozen=True)
class FileRow:
    """One file's size in bytes and its sha256 in lower-case hexadecimal."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        fits = _is_integer(self.size, 0, MAX_FILE_BYTES)
        _must(fits, "size", self.size, f"a whole number from 0 to {MAX_FILE_BYTES}")
        _must(_is_match(_DIGEST, self.sha256), "sha256", self.sha256, "64 lower-case hex digits")


@dataclass(frozen=True)
class ModelRow:
    """One model of a manifest.

    Arguments:
        name: What users type.
        resolution: Side of its images, in pixels.
        licence: Of the weights, in words.
        files: File name to size and digest; `config.json` and `generator.safetensors` at least.
        default: Of the rows with this name, the one that an open resolution means.
        folder: The embedded copy, relative to `hebm_sample/weights`; None if it is not embedded.
        repo_id: `owner/name` on the Hub; None until published.
        revision: The commit on the Hub, 40 hex digits; None until published.
        figures: What was measured, as plain JSON.
    """

    name: str
    resolution: int
    licence: str
    files: Mapping[str, FileRow]
    default: bool = True
    folder: str | None = None
    repo_id: str | None = None
    revision: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        folder, repo_id, revision = self.folder, self.repo_id, self.revision
        check_name(self.name)
        fits = _is_integer(self.resolution, 4, 1024)
        _must(fits, "resolution", self.resolution, "a whole number from 4 to 1024")
        _must(_is_line(self.licence), "licence", self.licence, "one line of 1 to 200 characters")
        _must(_is(self.default, bool), "default", self.default, "true or false")
        _must(folder is None or _is_plain_name(folder), "folder", folder, f"null or {_PLAIN}")
        _must(repo_id is None or _is_repo_id(repo_id), "repo_id", repo_id, "null or owner/name")
        fits = revision is None or (_is_match(_COMMIT, revision) and repo_id is not None)
        _must(fits, "revision", revision, "null or a commit of repo_id (40 hex digits)")
        _must(_is(self.figures, Mapping), "figures", self.figures, "an object")
        _must(_is(self.files, Mapping), "files", self.files, "an object")
        for name, row in self.files.items():
            _must(_is_plain_name(name), "a name in files", name, _PLAIN)
            _must(_is(row, FileRow), f"files[{name}]", row, "a FileRow")
        missing = sorted(set(REQUIRED_FILES) - set(self.files))
        _require(not missing, f"files lacks {', '.join(missing)}")

    @classmethod
    def from_dict(cls, data: Any) -> "ModelRow":
        """Build from plain JSON values; `UserInputError` on unknown, missing or ill-typed keys."""
        _check_keys(data, cls, "a model row")
        files = data["files"]
        _must(isinstance(files, dict), "files", files, "an object")
        for name, row in files.items():
            _check_keys(row, FileRow, f"files[{short(name)}]")
        rest = {key: value for key, value in data.items() if key != "files"}
        return cls(files={name: FileRow(**row) for name, row in files.items()}, **rest)

    @property
    def weak(self) -> tuple[str, ...]:
        """Variables that were measured to steer weakly (`hebm-eval control`)."""
        named = self.figures.get(WEAK)
        return tuple(named.split(", ")) if isinstance(named, str) else ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict(to_dict())` is the identity."""
        return dataclasses.asdict(self)


def _check_keys(data: Any, kind: type, where: str) -> None:
    _must(isinstance(data, dict), where, data, "an object")
    fields = dataclasses.fields(kind)
    unknown = sorted(set(data) - {f.name for f in fields})
    _require(
        not unknown,
        f"{where} has unknown keys {short(unknown)}; a newer hebm_sample may know them",
    )
    optional = (dataclasses.MISSING, dataclasses.MISSING)
    missing = sorted(
        f.name for f in fields if f.name not in data and (f.default, f.default_factory) == optional
    )
    _require(not missing, f"{where} lacks the keys {missing}")


@dataclass(frozen=True)
class Manifest:
    """The models that exist, in the order of the file."""

    models: tuple[ModelRow, ...]

    def __post_init__(self) -> None:
        by_name: dict[str, list[ModelRow]] = {}
        for row in self.models:
            by_name.setdefault(row.name, []).append(row)
        for name, rows in by_name.items():
            sides = [row.resolution for row in rows]
            unique = len(set(sides)) == len(sides)
            _require(unique, f"{name} has two rows of one resolution among {short(sides)}")
            defaults = sum(row.default for row in rows)
            decided = len(rows) == 1 or defaults == 1
            _require(decided, f"{name} has {defaults} default rows, not 1, among {short(sides)}")

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> "Manifest":
        """Read a manifest file; the package's own if `path` is None.

        Raises:
            WeightsError: It is missing, over 1 MB, no JSON, or breaks a rule of `ModelRow`.
        """
        path = _package_manifest() if path is None else Path(path)
        try:
            return cls._from_dict(parse_json(read_capped(path, MAX_MANIFEST_BYTES)))
        except ValueError as error:
            raise WeightsError(f"{path} is no valid model manifest: {error}") from error

    @classmethod
    def _from_dict(cls, data: Any) -> "Manifest":
        _must(isinstance(data, dict), "the whole", data, "an object")
        version = data.get("format_version")
        known = _is_integer(version, FORMAT_VERSION, FORMAT_VERSION)
        _must(known, "format_version", version, f"{FORMAT_VERSION}, or else upgrade hebm_sample")
        unknown = sorted(set(data) - {"format_version", "models"})
        _require(not unknown, f"unknown keys {short(unknown)}")
        models = data.get("models")
        _must(isinstance(models, list), "models", models, "a list")
        return cls(tuple(ModelRow.from_dict(row) for row in models))

    def find(self, name: str, resolution: int | None = None) -> ModelRow:
        """The row of a name; with `resolution` None, the default one of that name.

        Raises:
            UserInputError: There is no such name, or not at that resolution.
        """
        rows = [row for row in self.models if row.name == name]
        if not rows:
            raise UserInputError(f"there is no model {short(name)}; {self.advice(name)}")
        if resolution is not None:
            chosen = [row for row in rows if row.resolution == resolution]
            sides = ", ".join(str(row.resolution) for row in rows)
            _require(
                bool(chosen), f"{name} has no resolution {short(resolution)}; it exists at {sides}"
            )
            return chosen[0]
        return rows[0] if len(rows) == 1 else next(row for row in rows if row.default)

    def advice(self, name: str) -> str:
        """What exists and what to type instead of an unknown name."""
        other = "give a model folder or a Hub repository (owner/name)"
        names = list(dict.fromkeys(row.name for row in self.models))
        if not names:
            return f"this installation lists none: {other}"
        close = difflib.get_close_matches(name.lower(), names, n=1)
        guess = f"did you mean {close[0]}? " if close else ""
        return f"{guess}known: {', '.join(names)}; or {other}"


def _package_manifest() -> Path:
    """In a wheel the manifest lies in the package; in a checkout, one folder above it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / MANIFEST_NAME
    return inside if inside.exists() else package.parent / MANIFEST_NAME


def list_models() -> list[ModelRow]:
    """The models that can be loaded by name, in the manifest's order.

    >>> sorted({row.name for row in list_models()})
    ['celeba64', 'celebahq', 'church64', 'cifar10']
    """
    return list(Manifest.load().models)


def read_row(folder: str | os.PathLike[str]) -> ModelRow:
    """The single row of a model folder's own manifest.

    Raises:
        WeightsError: It is missing or invalid, or holds another number of rows.
    """
    path = Path(folder) / MANIFEST_NAME
    models = Manifest.load(path).models
    if len(models) != 1:
        raise WeightsError(
            f"{path} holds {len(models)} models; a model folder's manifest holds one"
        )
    return models[0]


def write_row(
    model_folder: str | os.PathLike[str],
    *,
    name: str,
    resolution: int,
    licence: str,
    default: bool = True,
    folder: str | None = None,
    repo_id: str | None = None,
    revision: str | None = None,
    figures: Mapping[str, Any] | None = None,
) -> ModelRow:
    """Measure the model files in a folder and write its own manifest, atomically; returns the row.

    Raises:
        UserInputError: A field breaks a rule of `ModelRow`, or a required file is missing.
        EnvironmentFailure: The folder cannot be read or written.
    """
    model_folder = Path(model_folder)
    try:
        paths = [model_folder / file for file in KNOWN_FILES if (model_folder / file).is_file()]
        files = {path.name: FileRow(*measured(path, MAX_FILE_BYTES + 1)) for path in paths}
    except OSError as error:
        raise EnvironmentFailure(
            f"cannot read {model_folder}: {error.strerror or error}"
        ) from error
    row = ModelRow(
        name, resolution, licence, files, default, folder, repo_id, revision, dict(figures or {})
    )
    write_manifest(model_folder / MANIFEST_NAME, [row])
    return row


def write_manifest(path: str | os.PathLike[str], rows: Iterable[ModelRow]) -> None:
    """Write a manifest file of these rows, atomically and in the same bytes for the same rows."""
    manifest = Manifest(tuple(rows))
    data = {"format_version": FORMAT_VERSION, "models": [row.to_dict() for row in manifest.models]}
    try:
        text = json.dumps(data, indent=2, ensure_ascii=True, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UserInputError(f"figures must be plain JSON with finite numbers: {error}") from error
    write_atomically(Path(path), text.encode())
