"""Which images of a folder are a split's: told by folders (`train/`, `Test/`, `train2017/`), or by
the names of all files (`train_001.png`, `7_test.png`).

A folder that is called like a split is one only where no other folder lies beside it that is none:
bus/, car/ and train/ are three classes. Where splits lie below other folders, or more than one
folder is a split's, which images are meant is not guessed.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from hebm_sample.data.splits import canonical, split_in_name, split_of_folder
from hebm_sample.errors import UserInputError

__all__ = ["Chosen", "choose_split"]


class Chosen(NamedTuple):
    """Images of one split.

    Arguments:
        images: Their names below the data's folder.
        base: The folder that holds them, "" or "train/".
        left_out: Images of other splits, by what they are called.
        taken: What the others' `left_out` says of these.
    """

    images: list[str]
    base: str
    left_out: dict[str, int]
    taken: dict[str, int]


def choose_split(root: Path, images: list[str], split: str | None) -> Chosen:
    """The images of a split; by default train's, or all where nothing says a split.

    Raises `UserInputError` where there is no such split, or more than one thing could be meant.
    """
    base = _common_folder(images) if split is None or _has_no(images, split) else ""
    tops = _tops(images, base)
    if split is None:
        name = _default_folder(root, tops)
    else:
        name = _asked_folder(root, tops, split)
    if name is None:
        chosen = _by_file_name(root, images, split)
        _check_below(root, chosen.images, base)
        return chosen
    left = {_called(top): len(some) for top, some in tops.items() if top != name}
    chosen = Chosen(
        tops[name],
        f"{base}{name}/" if name else base,
        left,
        {_called(name): len(tops[name])} if left else {},
    )
    if name:
        _check_folder(root, chosen.images, chosen.base)
    _check_below(root, chosen.images, chosen.base)
    return chosen


def _tops(images: list[str], base: str) -> dict[str, list[str]]:
    """Images by the folder in `base` that holds them; "" for what lies in none."""
    tops: dict[str, list[str]] = {}
    for name in images:
        top, slash, _ = name[len(base) :].partition("/")
        tops.setdefault(top if slash else "", []).append(name)
    return tops


def _common_folder(images: list[str]) -> str:
    """The folder, "" or "a/b/", that holds all images and does not bear a split's name."""
    base = ""
    for part in images[0].split("/")[:-1]:
        longer = f"{base}{part}/"
        if split_of_folder(part) or not all(name.startswith(longer) for name in images):
            break
        base = longer
    return base


def _has_no(images: list[str], split: str) -> bool:
    return not any(name.startswith(f"{split}/") for name in images)


def _called(top: str) -> str:
    return f"of {top}/" if top else "beside the split's folder"


def _told(root: Path, tops: dict[str, list[str]]) -> dict[str, str]:
    """The splits that folders side by side are: those whose names are a split's; where they do not
    say several, all of them if each has a word that says one, and several are said.
    """
    exact = {top: split for top in tops if (split := split_of_folder(top))}
    found = {top: said for top in tops if (said := split_in_name(top))}
    splits = {split for split, _ in found.values()}
    if len(splits) < 2 or len(set(exact.values())) > 1:
        return exact
    if len(found) == len([top for top in tops if top]):
        return {top: split for top, (split, _) in found.items()}
    rests = {rest: top for top, (split, rest) in found.items() if split != "train"}
    pairs = [(top, rests.get(rest)) for top, (split, rest) in found.items() if split == "train"]
    for a, b in pairs:
        if b is None or a in exact:
            continue
        others = ", ".join(sorted(f"{top}/" for top in tops if top and top not in found))
        raise UserInputError(
            f"{root} holds {a}/ and {b}/ beside {others}: whether they are splits or classes is "
            "anybody's guess; give the folder of one"
        )
    return exact


def _default_folder(root: Path, tops: dict[str, list[str]]) -> str | None:
    """Name of the folder to train on, "" for what lies in none, None where none is a split's."""
    told = _told(root, tops)
    others = [top for top in tops if top and top not in told]
    kinds = set(told.values())
    if not told or (len(kinds) == 1 and others and _are_classes(tops)):
        return None
    names = ", ".join(f"{top}/" for top in sorted(told))
    if (len(kinds) == 1 and others) or len(kinds) < len(told):
        more = ", ".join(f"{top}/" for top in sorted(others))
        raise UserInputError(
            f"{root} holds {names}{' beside ' + more if more else ''}: which of them to train on "
            "is anybody's guess; give the folder of one"
        )
    if "train" in kinds:
        return next(top for top, split in told.items() if split == "train")
    if "" in tops:  # images with a folder of test images beside them
        return ""
    if len(told) > 1:
        raise UserInputError(
            f"{root} holds {names} and no train/; give the folder of one as the data"
        )
    return next(iter(told))


def _are_classes(tops: dict[str, list[str]]) -> bool:
    """Whether all folders hold images alone."""
    depth = {len(name.split("/")) for top, some in tops.items() if top for name in some}
    return len(depth) == 1


def _asked_folder(root: Path, tops: dict[str, list[str]], split: str) -> str | None:
    found = [top for top in tops if top and canonical(top) == canonical(split)]
    if not found:
        told = _told(root, tops)
        found = [top for top in told if told[top] == canonical(split)]
    if split in found:
        return split
    if len(found) > 1:
        raise UserInputError(f"the split {split!r} could be {' or '.join(sorted(found))}")
    return found[0] if found else None


def _check_below(root: Path, images: list[str], base: str) -> None:
    """`_check_folder` of all folders below `base`."""
    folders: dict[str, list[str]] = {}
    for name in images:
        at = name.find("/", len(base))
        while at >= 0:
            folders.setdefault(name[: at + 1], []).append(name)
            at = name.find("/", at + 1)
    for folder, some in folders.items():
        _check_folder(root, some, folder)


def _check_folder(root: Path, images: list[str], folder: str) -> None:
    """`UserInputError` where a folder among classes, or in a split's folder, holds splits."""
    tops = _tops(images, folder)
    told = _told(root / folder, tops)
    classes = len(set(told.values())) == 1 and len(told) < len(set(tops) - {""})
    if not told or len(tops) == 1 or (classes and _are_classes(tops)):
        return
    names = ", ".join(f"{folder}{top}/" for top in sorted(told))
    raise UserInputError(
        f"{root} holds {names}, and splits are told by the outermost folders; put what is to be "
        "trained on into one folder train/, such as train/cats/, or give the folder of one"
    )


def _by_file_name(root: Path, images: list[str], split: str | None) -> Chosen:
    """Images by a word of their names, where one in each is a split's, and several are told; else
    all of them.
    """
    found: dict[str, list[str]] = {}
    for name in images:
        stem = os.path.splitext(name.rsplit("/", 1)[-1])[0]
        word = re.match(r"[a-z]*", stem.casefold())
        said = split_of_folder(word.group() if word else "")
        if said is None:
            said, _ = split_in_name(stem) or ("", "")
        found.setdefault(said, []).append(name)
    told = len(found) > 1 and "" not in found
    wanted = canonical(split or "train")
    if told and wanted in found:
        left = {f"of split {k}": len(v) for k, v in found.items() if k != wanted}
        return Chosen(found[wanted], "", left, {f"of split {wanted}": len(found[wanted])})
    if split is not None:
        raise UserInputError(f"{root} has no folder {split!r} for that split")
    if told:
        raise UserInputError(
            f"{root} holds files of the splits {' and '.join(sorted(found))} and none of train; "
            "put those to train on into a folder of their own"
        )
    return Chosen(images, "", {}, {})
