"""Splits that are told by the name of a folder or of a file: train, validation, test.

Names are those of Hugging Face data sets, in any case: `train/`, `Training/`, `val/`, `dev/`,
`train-00000-of-00003.parquet`, `cifar-test.parquet`. A folder's name is a split's as a whole, a
file's if one of its words is; what lies in a folder of a split belongs to that one. Where all
names side by side have such a word (`train2017/` and `val2017/`), folders' words count too.
"""

import re
from collections.abc import Iterable
from pathlib import PurePath

from hebm_sample.errors import UserInputError

__all__ = ["by_split", "canonical", "pick_split", "split_in_name", "split_of_folder"]

_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SPLITS = {name: split for split, names in _NAMES.items() for name in names}


def canonical(name: str) -> str:
    """`train`, `validation` or `test` of one of their names; another name in lower case."""
    return _SPLITS.get(name.casefold(), name.casefold())


def split_of_folder(name: str) -> str | None:
    """The split that a folder's name is, or None."""
    return _SPLITS.get(name.casefold())


def _words(name: str) -> list[str]:
    """Words of a name, in lower case: `trainA`, `train_a`, `Trainset` begin with train."""
    found = [*_CAMEL.findall(name), *re.split(r"[^a-z]+", name.casefold())]
    return [re.sub(r"(?<=.)sets?$", "", word.casefold()) for word in found]


def _splits_in(name: str) -> set[str]:
    return {_SPLITS[word] for word in _words(name) if word in _SPLITS}


def split_in_name(name: str) -> tuple[str, str] | None:
    """(the split that a word of a name says, the rest of the name); None where none says one, or
    where two are said.
    """
    splits = _splits_in(name)
    if len(splits) != 1:
        return None
    word = next(w for w in _words(name) if w in _SPLITS)
    before, _, after = name.casefold().partition(word)
    return splits.pop(), f"{before}*{after}"


def _split_of_file(path: PurePath) -> str:
    """The split of a file by its innermost folder that is one, or by a word of its name, or by a
    word of a folder's; "?" and its first word if none of them says.
    """
    for folder in reversed(path.parts[:-1]):
        if (split := split_of_folder(folder)) is not None:
            return split
    words = _splits_in(path.stem)
    if len(words) > 1:
        raise UserInputError(
            f"{path} names the splits {' and '.join(sorted(words))}; rename it, or give one file"
        )
    if words:
        return words.pop()
    for folder in reversed(path.parts[:-1]):
        if (found := split_in_name(folder)) is not None:
            return found[0]
    # Any first word can be asked for: `extra-00000.parquet`.
    named = re.match(r"[a-z]+", path.stem.casefold())
    return f"?{named.group() if named else ''}"


def by_split(paths: Iterable[PurePath]) -> dict[str, list[PurePath]]:
    """Files by split; those of none under `?` and the first word of their names."""
    found: dict[str, list[PurePath]] = {}
    for path in paths:
        found.setdefault(_split_of_file(path), []).append(path)
    return found


def pick_split(
    found: dict[str, list[PurePath]], split: str | None, shown: str
) -> tuple[list[PurePath], int]:
    """(files of the split, files of others), in sorted order.

    Arguments:
        found: Of `by_split`.
        split: That is asked for; None for train's, or for all files where none says a split.
        shown: What is read, for errors.

    Raises `UserInputError` where the split does not exist, or where only others do.
    """
    told = sorted(k for k in found if not k.startswith("?"))
    total = sum(map(len, found.values()))
    if split is not None:
        wanted = canonical(split)
        chosen = found.get(wanted, found.get(f"?{wanted}"))
        if chosen is None:
            names = sorted(filter(None, (k.removeprefix("?") for k in found)))
            raise UserInputError(f"no parquet file of the split {split!r}; there are {names}")
    elif "train" in found:
        chosen = found["train"]
    elif len(told) > 1 or (told and len(found) > len(told)):
        raise UserInputError(
            f"{shown} holds the splits {' and '.join(told)} and none called train; "
            "give the files or the folder of one"
        )
    else:
        chosen = sorted(path for paths in found.values() for path in paths)
    if set(chosen) <= {path for key in told for path in found[key]}:
        _one_configuration(chosen, shown)
    return list(chosen), total - len(chosen)


def _one_configuration(chosen: list[PurePath], shown: str) -> None:
    """`UserInputError` for `fine/train/0000.parquet` beside `coarse/train/0000.parquet`: the same
    rows under other labels, and no parts of one set.
    """
    folders: dict[PurePath, set[str]] = {}
    for path in chosen:
        at = next((i for i, part in enumerate(path.parts[:-1]) if split_of_folder(part)), None)
        folder = path.parent if at is None else PurePath(*path.parts[:at])
        if folder.parts:
            folders.setdefault(folder, set()).add(path.name)
    names = [name for some in folders.values() for name in some]
    if len(set(names)) < len(names):
        listed = ", ".join(sorted(f"{folder}/" for folder in folders))
        raise UserInputError(
            f"{shown} holds files of the same names in {listed}: they may be the same rows twice; "
            "give the folder of one"
        )
