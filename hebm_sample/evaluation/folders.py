"""Two folders of images, measured against each other: `hebm-eval compare A B`.

B is the reference: precision is A's. Spaces are those of the classifiers that come with the
package, principal components fitted to both, and Inception's if asked for. Images are cropped to
their middle square and brought to one size, that of B's first one by default.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hebm_sample import __version__
from hebm_sample.data.dataset import ImageDataset, load_images
from hebm_sample.data.holdout import random_rows
from hebm_sample.data.sources import open_source
from hebm_sample.errors import HebmError, UserInputError
from hebm_sample.evaluation.reference import SHIPPED, find_set
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.io.images import open_image
from hebm_sample.metrics.features import PcaFeatures, extract
from hebm_sample.metrics.inception import InceptionFeatures
from hebm_sample.metrics.quality import Quality, measure_quality

__all__ = ["FolderComparison", "compare_folders"]

FEWEST = 4


@dataclass(frozen=True)
class FolderComparison:
    """What two folders are like in each space.

    Arguments:
        folders: A and B, as they were given.
        counts: Their images.
        size: Side that these were brought to.
        spaces: Name to figures, A against B.
    """

    folders: tuple[str, str]
    counts: tuple[int, int]
    size: int
    spaces: dict[str, Quality]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "version": __version__,
            "folders": list(self.folders),
            "counts": list(self.counts),
            "size": self.size,
            "spaces": {name: q.to_dict() for name, q in self.spaces.items()},
        }

    def table(self) -> str:
        """The figures as text."""
        a, b = self.folders
        lines = [
            f"{a} ({self.counts[0]} images) against {b} ({self.counts[1]}), {self.size}x"
            f"{self.size}; the larger folder's images are not thinned, but for precision, recall, "
            "density and coverage, which are of as many of both: compare only with figures of as "
            "many"
        ]
        for name, q in self.spaces.items():
            lines += [f"In {name}:", f"  Fréchet distance {q.frechet}", f"  {q}"]
        return "\n".join(lines)


def _first_size(folder: Path) -> int:
    """Shorter side of the first image that can be read."""
    reason = "it is empty"
    for chunk in open_source(folder, None).chunks():
        for image in chunk.images:
            if image is None:
                continue
            try:
                return min(
                    open_image(io.BytesIO(image) if isinstance(image, bytes) else image).size
                )
            except HebmError as error:
                reason = str(error)
    raise UserInputError(f"none of the images in {folder} can be read: {reason}")


def _spaces(sets: Sequence[ImageDataset], inception: bool) -> dict[str, Any]:
    rows = json.loads((SHIPPED / "index.json").read_text(encoding="utf-8"))["sets"].values()
    found: dict[str, Any] = {}
    for row in rows:
        known = find_set(row["name"], row["image_size"])
        assert known is not None
        if known.net_of is not None:  # another set's, and so here already
            continue
        found[f"{known.net.name}, trained on {known.name}"] = known.net
    # Of as many of both: components of B alone would be nearer to B than to others of its law.
    count = min(map(len, sets))
    images = np.concatenate(
        [np.asarray(s.select(random_rows(len(s), count)).images) for s in sets]
    )
    pca = PcaFeatures(min(100, len(images) - 1)).fit(images)
    found[f"{pca.name} of A and B"] = pca
    if inception:
        extractor = InceptionFeatures()
        found[extractor.name] = extractor
    return found


@usual_defaults()
def compare_folders(
    a: str | Path,
    b: str | Path,
    *,
    size: int | None = None,
    inception: bool = False,
    cache_dir: Path | None = None,
    progress: bool = True,
    read: Callable[[str, ImageDataset], object] = lambda *_: None,
) -> FolderComparison:
    """Measure the images of folder A against those of folder B.

    Arguments:
        read: Told of each folder what was read in it, before anything is measured.

    Raises:
        UserInputError: No such folder, or fewer than 4 images in one.
    """
    for folder in (a, b):
        if not Path(folder).is_dir():
            raise UserInputError(f"there is no folder {folder}")
    size = size or _first_size(Path(b))
    options: dict[str, Any] = {"size": size, "cache_dir": cache_dir, "progress": progress}
    sets = [load_images(folder, **options) for folder in (a, b)]
    for folder, images in zip((a, b), sets, strict=True):
        read(str(folder), images)
    if min(map(len, sets)) < FEWEST:
        raise UserInputError(
            f"{a} has {len(sets[0])} images and {b} {len(sets[1])}; a comparison needs {FEWEST}"
        )
    found = {}
    for name, extractor in _spaces(sets, inception).items():
        features = [extract(extractor, x.images, progress=progress) for x in sets]
        found[name] = measure_quality(*features)
    return FolderComparison((str(a), str(b)), (len(sets[0]), len(sets[1])), size, found)
