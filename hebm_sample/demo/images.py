"""Images on the page: their files, and what the model says of them."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hebm_sample.demo.steps import Origin, Step
from hebm_sample.demo.studio import positive

if TYPE_CHECKING:
    from PIL.Image import Image

    from hebm_sample.demo.photos import Photo
    from hebm_sample.latents import Latents
    from hebm_sample.pipeline.pipeline import Pipeline, Samples

__all__ = ["MAX_IMAGES", "DemoImage", "average", "of_latents", "of_samples"]

MAX_IMAGES = 9
MOST_PREDICTIONS = 4

Texts = Callable[[int], dict[str, str]]
"""What the file of the `index`-th image says."""


@dataclass(frozen=True)
class DemoImage:
    """One image on the page.

    Arguments:
        png: Its file, with what the commands write into it once it is finished.
        caption: What stands under it.
        origin: How it came about; None for one that nothing can begin from.
        energies: -F_{i} of each group; empty where there are none.
        predictions: p of symbols given the image, by the model itself: of "yes", or of the
            likeliest values; of a beard, where the symbol is `No_Beard`. Empty for an image on
            its way.
        latents: u of this image alone; None where it has not been read.
        log_density: log p(u) of the prior, up to its constant; None for an image on its way, and
            where there is no prior.
        files: Name and content of other files that its lines read.
        photo: The photograph that its face is from.
        finished: Whether this is what was asked for, and no stage on the way to it.
    """

    png: bytes
    caption: str
    origin: Origin | None = None
    energies: tuple[float, ...] = ()
    predictions: tuple[tuple[str, float], ...] = ()
    latents: "Latents | None" = None
    log_density: float | None = None
    files: tuple[tuple[str, bytes], ...] = ()
    photo: "Photo | None" = None
    finished: bool = True

    @property
    def image(self) -> "Image":
        """Its pixels."""
        from PIL import Image

        return Image.open(io.BytesIO(self.png)).convert("RGB")


def of_samples(
    pipe: "Pipeline",
    samples: "Samples",
    step: Step,
    captions: Sequence[str],
    texts: Texts | None,
) -> list[DemoImage]:
    """What a chain sampled; without texts for their files they are on their way."""
    energies = [()] * len(samples) if samples.energies is None else samples.energies.tolist()
    return _images(pipe, samples, step, captions, energies, texts)


def of_latents(
    pipe: "Pipeline",
    samples: "Samples",
    step: Step,
    captions: Sequence[str],
    texts: Texts,
) -> list[DemoImage]:
    """What was decoded from latents that no chain sampled: its energies are those of the latents
    as they are.
    """
    groups = range(len(samples.latents)) if pipe.prior is not None else ()
    columns = [pipe.energy(latents=samples.latents, groups=i).tolist() for i in groups]
    rows = [list(row) for row in zip(*columns, strict=True)] or [[]] * len(samples)
    return _images(pipe, samples, step, captions, rows, texts)


def _images(
    pipe: "Pipeline",
    samples: "Samples",
    step: Step,
    captions: Sequence[str],
    energies: Sequence[Sequence[float]],
    texts: Texts | None,
) -> list[DemoImage]:
    from hebm_sample.io.images import png_bytes

    count, u = len(samples), samples.latents
    predictions = _predictions(pipe, u) if texts else [()] * count
    densities = _densities(pipe, u) if texts else [None] * count
    found = []
    for i, (caption, image) in enumerate(zip(captions, samples.images, strict=True)):
        latents = tuple(group[i : i + 1] for group in u)
        png = png_bytes(image, texts and texts(i))
        what = (tuple(energies[i]), predictions[i], latents, densities[i])
        shown = DemoImage(png, caption, Origin(step, i), *what, finished=texts is not None)
        found.append(shown)
    return found


def _densities(pipe: "Pipeline", latents: "Latents") -> list[Any]:
    """log p(u) of each image; None for a model without a prior."""
    if pipe.prior is None:
        return [None] * len(latents[0])
    return pipe.log_density(latents=latents).tolist()


def _predictions(pipe: "Pipeline", latents: "Latents") -> list[Any]:
    """p(symbol | u) of each image, what is worth showing of it."""
    rows: list[tuple[tuple[str, float], ...]] = [()] * len(latents[0])
    if not pipe.symbols:
        return rows
    for name, probabilities in pipe.classify(latents=latents).items():
        values = pipe.symbols[name]
        for i, row in enumerate(probabilities.tolist()):
            named = sorted(zip(values, row, strict=True), key=lambda pair: -pair[1])
            if set(values) == {"no", "yes"}:
                denied = positive(name, values)
                rows[i] += ((denied or name, dict(named)["no" if denied else "yes"]),)
            else:
                rows[i] += tuple(named[:MOST_PREDICTIONS])
    return rows


def average(pipe: "Pipeline") -> DemoImage:
    """The image of u = 0, the middle of N(0, I)."""
    import torch

    from hebm_sample.io.images import png_bytes

    zero = tuple(torch.zeros(1, *shape) for shape in pipe.generator.latent_shapes)
    return DemoImage(png_bytes(pipe.decode(zero)[0]), "all latents at zero: the model's average")
