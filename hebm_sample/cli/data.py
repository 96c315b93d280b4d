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
        UserInputError: It is no folder, or that of the data itself.
        EnvironmentFailure: The system refuses.
    """
    from hebm_sample.io.images import check_folder

    if Path(data).is_dir() and out.exists() and Path(data).samefile(out):
        raise UserInputError(
            f"--out and --data are both {out}; give the run a folder of its own, which may lie "
            "in that of the data"
        )
    check_folder(out)
