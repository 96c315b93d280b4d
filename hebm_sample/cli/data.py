"""What commands share that read a data set: which rows are held out, and what was read."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hebm_sample.cli.printing import say
from hebm_sample.errors import UserInputError

if TYPE_CHECKING:
    from hebm_sample.data.images import ImageDataset

__all__ = ["HASH", "HoldOutType", "check_run", "tell"]

HASH = "hash"


class HoldOutType(click.ParamType):
    """hash, last:N or N, which means last:N."""

    name = "held-out rows"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """N, or "hash"."""
        from hebm_sample.presets.settings import parse_validation

        if not isinstance(value, str):
            return value
        found = parse_validation(value)
        return HASH if found is None else found


def tell(
    data: str, training: "ImageDataset", held_out: "ImageDataset | None", rule: str, quiet: bool
) -> None:
    """Print, before the work, what was read and what was not."""
    from hebm_sample.data.summary import data_line

    if not quiet:
        say(data_line(data, training, held_out, rule), err=True)


def check_run(data: str, out: Path) -> None:
    """Find out before the data are read that a run's folder cannot be written.

    Raises:
        UserInputError: It is no folder, that of the data itself, one of theirs, or it holds files
            that a run would write over.
        EnvironmentFailure: The system refuses.
    """
    from hebm_sample.io.images import check_folder
    from hebm_sample.io.written import check_run_folder

    source = Path(data).expanduser()
    if source.is_dir() and out.exists() and source.samefile(out):
        raise UserInputError(
            f"--out and --data are both {out}; give the run a folder of its own, which may lie "
            "in that of the data"
        )
    if source.is_dir() and out.is_dir():
        _check_inside(source, out)
    check_run_folder(out)
    check_folder(out)


def _check_inside(source: Path, out: Path) -> None:
    """A run's folder is passed over when data are read: none of them may be made one."""
    from hebm_sample.io.files import is_run_folder

    inside = out.resolve().is_relative_to(source.resolve())
    files = (p for p in out.iterdir() if not p.name.startswith(".")) if inside else iter(())
    if next(files, None) is not None and not is_run_folder(out):
        raise UserInputError(
            f"--out {out} is a folder of the data, whose files would no longer be read; give the "
            "run a folder of its own, which may lie in that of the data"
        )
