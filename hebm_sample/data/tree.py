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
        lost: Links that lead nowhere, pipes and devices.
        repeated: Links to folders that are read already.
    """

    root: Path
    names: list[str] = field(default_factory=list[str])
    runs: list[str] = field(default_factory=list[str])
    written: list[str] = field(default_factory=list[str])
    lost: list[str] = field(default_factory=list[str])
    repeated: list[str] = field(default_factory=list[str])


def walk(root: Path) -> Tree:
    """The files below `root`, through links, each folder once: where it lies, or else by the first
    link to it in the order of names.

    Raises `UserInputError` if a run or a report wrote `root`, `EnvironmentFailure` if it cannot be
    read.
    """
    check_source(root)
    tree, links, seen = Tree(root), list[str](), set[str]()
    try:
        _into(tree, "", links, seen)
        # Folders first, so that a link to one of them is known to be one.
        while links:
            links.sort(reverse=True)
            name = links.pop()
            if os.path.realpath(os.path.join(root, name)) in seen:
                tree.repeated.append(name)
            else:
                _into(tree, f"{name}/", links, seen)
    except OSError as error:
        raise EnvironmentFailure(
            f"{error.filename or root} cannot be read: {error.strerror or error}"
        ) from error
    tree.names.sort()
    tree.runs.sort()
    return tree


def _into(tree: Tree, prefix: str, links: list[str], seen: set[str]) -> None:
    """Take up a folder and those in it; links to folders are put off."""
    folder = os.path.join(tree.root, prefix)
    seen.add(os.path.realpath(folder))
    with os.scandir(folder) as entries:
        everything = list(entries)
    written = written_names(folder, [e.name for e in everything])
    found = [e for e in everything if not e.name.startswith(".")]
    for entry in found:
        name = f"{prefix}{entry.name}"
        kind = _kind(entry)
        if entry.name in written:
            tree.written.append(name)
        elif kind == "file":
            tree.names.append(name)
        elif kind == "lost":
            tree.lost.append(name)
        elif is_run_folder(Path(entry.path)):
            tree.runs.append(name)
        elif entry.is_symlink():
            links.append(name)
        elif os.path.realpath(entry.path) in seen:
            tree.repeated.append(name)
        else:
            _into(tree, f"{name}/", links, seen)


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        return "file" if entry.is_file() else "folder" if entry.is_dir() else "lost"
    except OSError:  # a link to itself
        return "lost"


def with_suffixes(names: list[str], suffixes: tuple[str, ...]) -> list[str]:
    """The names that end in one of the suffixes, in any case."""
    return [name for name in names if os.path.splitext(name)[1].lower() in suffixes]
