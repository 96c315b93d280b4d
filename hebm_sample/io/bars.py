"""Progress bars: where they are shown."""

__all__ = ["disabled"]


def disabled(shown: bool) -> bool | None:
    """What `tqdm` takes for `disable`: a bar that is to be shown is, in a terminal or in a
    notebook; files and pipes get none of its hundreds of lines.
    """
    return None if shown else True
