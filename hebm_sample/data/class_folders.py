"""One folder per class: a label from the name of an image's folder."""

import os
import re
from collections.abc import Iterable

from hebm_sample.data.labels import Text

__all__ = ["class_labels"]

_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


def class_labels(images: list[str]) -> tuple[dict[str, str | int], list[str]]:
    """(label of each image that lies in a class's folder, what to say).

    Labels where two folders or more hold images alone; images beside them have none. A folder's
    name is a text, and a number only where all are whole numbers as they are counted: 0, 1, ...,
    but not 007. None in folders that are parts of one set, as StyleGAN and FFHQ number them.
    """
    base = os.path.commonpath([os.path.dirname(name) for name in images])
    inner = {name: os.path.relpath(name, base or ".").split(os.sep) for name in images}
    classes = {parts[0] for parts in inner.values() if len(parts) == 2}
    if len(classes) < 2 or any(len(parts) > 2 for parts in inner.values()):
        return {}, []
    labelled = {name: parts for name, parts in inner.items() if len(parts) == 2}
    if _are_parts(labelled.values()):
        shown = ", ".join(sorted(classes)[:2])
        return {}, [f"the folders {shown}, ... number parts of the set, and are no classes"]
    numbers = all(_NUMBER.fullmatch(name) for name in classes)
    return {
        name: int(folder) if numbers else Text(folder) for name, (folder, _) in labelled.items()
    }, []


def _are_parts(files: Iterable[list[str]]) -> bool:
    """Whether folders of five digits hold a thousand files each, counted on: 00001/img00001234.png
    of StyleGAN, 01000/01234.png of FFHQ.
    """
    for folder, file in files:
        stem = os.path.splitext(file)[0]
        styled = re.fullmatch(r"img[0-9]+", stem)
        counted = re.fullmatch(r"[0-9]{5}", stem) and stem[:2] + "000" == folder
        if not re.fullmatch(r"[0-9]{5}", folder) or not (styled or counted):
            return False
    return True
