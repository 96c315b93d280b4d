"""What lies below a folder: files in sorted order, without what is hidden and what runs wrote."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from hebm_sample.errors import EnvironmentFailure
from hebm_sample.io.files import is_run_folder
from hebm_sample.io.written import check_source, written_names

__all__ = ["Tree", "with_suffixes", "walk"]


@dataclass
class Tree:
    """Files below a folder.

    Arguments:
        root: The folder.
        names: Of the files, relative to it, with `/`; sorted.
        runs: Folders of training runs, which are passed over.
        written: What exports and reports wrote, which is, too.
    """

    root: Path
    names: list[str] = field(default_factory=list[str])
    runs: list[str] = field(default_factory=list[str])
    written: list[str] = field(default_factory=list[str])


def walk(root: Path) -> Tree:
    """The files below `root`, through links; a link to a folder above itself is not followed.

    Raises `UserInputError` if a run or a report wrote `root`, `EnvironmentFailure` if it cannot be
    read.
    """
    check_source(root)
    tree = Tree(root)
    try:
        _into(tree, "", ())
    except OSError as error:
        raise EnvironmentFailure(
            f"{error.filename or root} cannot be read: {error.strerror or error}"
        ) from error
    tree.names.sort()
    tree.runs.sort()
    return tree


def _into(tree: Tree, prefix: str, above: tuple[str, ...]) -> None:
    folder = os.path.join(tree.root, prefix)
    here = os.path.realpath(folder)
    if here in above:
        return
    with os.scandir(folder) as entries:
        everything = list(entries)
    written = written_names(folder, [e.name for e in everything])
    found = [e for e in everything if not e.name.startswith(".")]
    for entry in found:
        name = f"{prefix}{entry.name}"
        if entry.name in written:
            tree.written.append(name)
        elif entry.is_file():
            tree.names.append(name)
        elif entry.is_dir():
            if is_run_folder(Path(entry.path)):
                tree.runs.append(name)
            else:
                _into(tree, f"{name}/", (*above, here))


def with_suffixes(names: list[str], suffixes: tuple[str, ...]) -> list[str]:
    """The names that end in one of the suffixes, in any case."""
    return [name for name in names if os.path.splitext(name)[1].lower() in suffixes]
