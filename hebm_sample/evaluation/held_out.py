"""Which rows of a data set a model is measured on: those that its training held out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from hebm_sample.config import TrainingRecord
from hebm_sample.data.dataset import ImageDataset, load_images
from hebm_sample.data.summary import held_out_rule
from hebm_sample.errors import UserInputError
from hebm_sample.presets.models import PRESETS
from hebm_sample.training.record import check_rows, held_out_rule_of

__all__ = ["held_out_by", "open_held_out"]

HASH = "hash"
TEST_SPLIT = "test"


def _validation(
    model: str | None,
    validation: int | str | None,
    records: Sequence[TrainingRecord] = (),
    size: int = 0,
) -> Any:
    """ "hash", or how many rows at the end are held out."""
    if validation is None:
        validation = held_out_rule_of(records, size)
    if validation is None and (preset := PRESETS.get(model or "")) is not None:
        validation = preset.prior_settings.validation
    return HASH if validation is None else validation


def _split(model: str | None, validation: int | str | None, split: str | None) -> str | None:
    """The split that is held out, where one was asked for or a preset of that name has its own."""
    preset = PRESETS.get(model or "")
    if split is None and validation is None and preset is not None:
        return preset.held_out_split or None
    return split


def held_out_by(
    model: str | None,
    validation: int | Literal["hash"] | None,
    split: str | None,
    *,
    records: Sequence[TrainingRecord] = (),
    size: int = 0,
) -> str:
    """How `open_held_out` chooses rows, in words."""
    split = _split(model, validation, split)
    rows = _validation(model, validation, records, size)
    if split is None and rows != 0:
        return held_out_rule(None if rows == HASH else rows)
    return f"the split {split or TEST_SPLIT!r}"


def open_held_out(
    source: str | Path,
    *,
    size: int,
    model: str | None = None,
    validation: int | Literal["hash"] | None = None,
    split: str | None = None,
    records: Sequence[TrainingRecord] = (),
    cache_dir: Path | None = None,
    progress: bool = True,
) -> tuple[ImageDataset, ImageDataset]:
    """The rows that a model was trained on, and those that it was not.

    Arguments:
        source: As for `load_images`.
        size: Side of the images.
        model: A preset of that name says which rows were kept apart, where the records do not.
        validation: In their place: "hash", or how many at the end; 0 means none, and the split
            `test` is held out. "hash" if nobody says.
        split: Of the source, that is held out; then no rows at the end are. The preset's, where it
            has one and neither was given.
        records: Of the model's training (`ModelConfig.training`): its runs' own rule is the
            default, and no other may hold out what they were trained on.
        cache_dir: Of `load_images`.
        progress: Show a bar while decoding.

    Raises:
        UserInputError: There are no such rows or split, the split is the training rows, or a part
            of the model was trained on rows that would count as held out.
    """
    if split is not None and validation:
        raise UserInputError(
            f"{validation} validation rows and the split {split!r} were both given; "
            "leave one of them out"
        )
    split = _split(model, validation, split)
    rows = _validation(model, validation, records, size)
    options: dict[str, Any] = {"size": size, "cache_dir": cache_dir, "progress": progress}
    training = load_images(source, **options)
    if split is None and rows != 0:
        sets = training.split(None if rows == HASH else rows)
    else:
        sets = training, _other_split(source, training, split or TEST_SPLIT, options)
    if records:
        check_rows(model or "the model", records, *sets)
    return sets


def _other_split(
    source: str | Path, training: ImageDataset, split: str, options: dict[str, Any]
) -> ImageDataset:
    held_out = load_images(source, split=split, **options)
    if held_out.identity == training.identity:
        raise UserInputError(
            f"the split {split!r} of {source} is what the model is trained on; "
            "name another with --split, or keep rows apart with --validation"
        )
    return held_out.numbered_as(training)
