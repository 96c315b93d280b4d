"""The work behind the page's buttons: a recipe and a pipeline in, images out.

    draw           samples after each noise level, by `Pipeline.stream`
    vary           the top groups of u_0 kept, the others sampled anew
    reconstruct    decode(u), u ~ q(u | x)
    edit           before, reconstructed, edited
    average        decode(0), to look at before anything is sampled

Samples are drawn with the options and the batch size of the commands, so their files are those
that the commands write, to the byte.
"""

import io
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hebm_sample.cli.work import editing, sampling
from hebm_sample.cli.work.model import within_memory
from hebm_sample.demo.recipes import (
    Draw,
    Edit,
    Origin,
    Reconstruct,
    Upload,
    Vary,
    edit_options,
    safe_name,
    sample_options,
)
from hebm_sample.errors import UserInputError
from hebm_sample.pipeline.provenance import Provenance

if TYPE_CHECKING:
    from PIL.Image import Image

    from hebm_sample.cli.requests.sample import SampleOptions
    from hebm_sample.latents import Latents
    from hebm_sample.pipeline.pipeline import Pipeline, Samples

__all__ = [
    "MAX_IMAGES",
    "MAX_UPLOAD_BYTES",
    "Image",
    "Stopped",
    "Watch",
    "average",
    "draw",
    "edit",
    "reconstruct",
    "upload",
    "vary",
]

MAX_IMAGES = 9
MAX_UPLOAD_BYTES = 10 * 2**20
MOST_PREDICTIONS = 4
MAX_UPLOAD_PIXELS = 2**25  # 33 megapixels: what cameras and telephones make


@dataclass(frozen=True)
class DemoImage:
    """One image on the page.

    Arguments:
        png: Its file, with what `hebm-sample` writes into it once it is finished.
        caption: What stands under it.
        origin: How it came about; None for one that nothing can begin from.
        energies: -F_{i} of each group; empty where there are none.
        predictions: p of symbols given the image, by the model itself: of "yes", or of the
            likeliest values. Empty for an image on its way.
        latents: u of this image alone; None where it has not been read.
        log_density: log p(u) of the prior, up to its constant; None for an image on its way, and
            where there is no prior.
    """

    png: bytes
    caption: str
    origin: Origin | None = None
    energies: tuple[float, ...] = ()
    predictions: tuple[tuple[str, float], ...] = ()
    latents: "Latents | None" = None
    log_density: float | None = None

    @property
    def image(self) -> "Image":
        """Its pixels."""
        from PIL import Image

        return Image.open(io.BytesIO(self.png)).convert("RGB")


class Stopped(Exception):
    """The visitor pressed Stop, or left."""


@dataclass
class Watch:
    """Counts the gradients of a chain, and ends it when told to.

    Arguments:
        stop: Set by someone else to end the chain at its next gradient.
        tell: Called with the share that is done, in [0, 1].
        total: Gradients in all; set by the action.
    """

    stop: threading.Event = field(default_factory=threading.Event)
    tell: Callable[[float], object] = lambda share: None
    total: int = 0
    done: int = 0

    def __call__(self, count: int) -> None:
        """So many more gradients; raises `Stopped`."""
        if self.stop.is_set():
            raise Stopped
        self.done += count
        self.tell(min(1.0, self.done / max(1, self.total)))


# Drawing


def draw(pipe: "Pipeline", step: Draw, watch: Watch) -> Iterator[list[DemoImage]]:
    """The images after each noise level; the last are finished."""
    options = _counted(step)
    watch.total = _steps(pipe, options, len(step.seeds))
    provenance = sampling.provenance_of(pipe, options)
    with within_memory(options.batch):
        states = pipe.stream(
            seeds=list(step.seeds),
            batch_size=options.batch,
            progress=watch,
            **options.settings,
            **options.condition,
        )
        for samples in states:
            said = None if samples.level else (options, provenance)
            yield _images(pipe, samples, step, said)


def vary(pipe: "Pipeline", step: Vary, source: DemoImage, watch: Watch) -> list[DemoImage]:
    """The source, and its variations. A source of several seeds is sampled again, alone."""
    options = _counted(step)
    again = step.sampled_source is not None and step.sampled_source != step.source.step
    watch.total = _steps(pipe, options, len(step.seeds)) + again * _steps(pipe, options, 1)
    given: dict[str, Any] = {**options.settings, **options.condition, "progress": watch}
    with within_memory(options.batch):
        if again and step.sampled_source is not None:
            begin: Any = pipe(
                seeds=list(step.sampled_source.seeds), batch_size=options.batch, **given
            )
        else:
            begin = _begin(source)
        samples = pipe.vary(
            begin,
            slice(0, step.keep),
            len(step.seeds),
            seeds=list(step.seeds),
            batch_size=options.batch,
            **given,
        )
    facts = {"sheet": "variations", "keep_top": step.keep}
    provenance = sampling.provenance_of(pipe, options).saying(**facts)
    return [source, *_images(pipe, samples, step, (options, provenance))]


def _begin(source: DemoImage) -> Any:
    """What `Pipeline.vary` takes: latents, or an image to read."""
    if source.latents is not None:
        return source.latents
    return [source.image]


def _counted(step: Draw | Vary) -> "SampleOptions":
    if not 1 <= len(step.seeds) <= MAX_IMAGES:
        raise UserInputError(
            f"{len(step.seeds)} seeds are {len(step.seeds)} images; this page draws at most "
            f"{MAX_IMAGES} at a time: `hebm-sample` draws thousands"
        )
    return sample_options(step)


def _steps(pipe: "Pipeline", options: Any, count: int) -> int:
    return pipe.total_steps(num_images=count, batch_size=options.batch, steps=options.steps)


def _images(
    pipe: "Pipeline",
    samples: "Samples",
    step: Draw | Vary | Edit,
    said: tuple[Any, Provenance] | None,
) -> list[DemoImage]:
    """Samples as images; without options and provenance to
    tell in their files they are on their way."""
    from hebm_sample.io.images import png_bytes

    energies = [()] * len(samples) if samples.energies is None else samples.energies.tolist()
    count, u = len(samples), samples.latents
    predictions = _predictions(pipe, u) if said else [()] * count
    densities = _densities(pipe, u) if said else [None] * count
    found = []
    for i, (seed, image) in enumerate(zip(samples.seeds, samples.images, strict=True)):
        latents = tuple(group[i : i + 1] for group in samples.latents)
        png = png_bytes(image, said and _text(step, *said, i, seed))
        caption = {Draw: f"seed {seed}", Vary: f"variation {seed}", Edit: "edited"}[type(step)]
        what = (tuple(energies[i]), predictions[i], latents, densities[i])
        found.append(DemoImage(png, caption, Origin(step, i), *what))
    return found


def _text(
    step: Draw | Vary | Edit, options: Any, provenance: Provenance, index: int, seed: int
) -> dict[str, str]:
    """What the file says: as the command's, where there is one that makes it."""
    if isinstance(step, Edit):
        return editing.single_text(options, provenance, index)
    if isinstance(step, Vary) and step.sampled_source is None:
        return provenance.of_seeds(seed).text(single=True)
    return sampling.single_text(options, provenance, seed)


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
                rows[i] += ((name, dict(named)["yes"]),)
            else:
                rows[i] += tuple(named[:MOST_PREDICTIONS])
    return rows


# Images that were there before


def upload(pipe: "Pipeline", path: str | os.PathLike[str]) -> DemoImage:
    """A visitor's file as the model sees it: the middle square, at its own size.

    Raises:
        UserInputError: It is no image of a format that is read, or too large.
        EnvironmentFailure: It is damaged.
    """
    from hebm_sample.io.images import open_image, png_bytes, prepare, to_pil

    name = safe_name(os.fspath(path))
    if os.path.getsize(path) > MAX_UPLOAD_BYTES:
        raise UserInputError(
            f"{name} is larger than {MAX_UPLOAD_BYTES >> 20} MB; give a smaller image"
        )
    file = io.BytesIO(Path(path).read_bytes())
    file.name = name  # what messages call it, instead of a place on this machine
    _check_pixels(file, name)
    square = to_pil(prepare(open_image(file), pipe.config.generator.image_size))[0]
    return DemoImage(png_bytes(square), "your image", Origin(Upload(name)))


def _check_pixels(file: io.BytesIO, name: str) -> None:
    """Refuse by its header what would take long to decode; what is no image passes."""
    from PIL import Image

    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            pixels = image.width * image.height
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        pixels = 0
    file.seek(0)
    if pixels > MAX_UPLOAD_PIXELS:
        raise UserInputError(
            f"{name} has {pixels / 1e6:.0f} megapixels; this page reads at most "
            f"{MAX_UPLOAD_PIXELS / 1e6:.0f}: give a smaller image"
        )


def reconstruct(pipe: "Pipeline", step: Reconstruct, source: DemoImage) -> list[DemoImage]:
    """The source, and what the model makes of it."""
    return [source, _reconstruction(pipe, step, source)]


def _reconstruction(pipe: "Pipeline", step: Reconstruct, source: DemoImage) -> DemoImage:
    from hebm_sample.io.images import png_bytes

    latents = pipe.encode([source.image])
    groups = range(len(latents)) if pipe.prior is not None else ()
    energies = tuple(float(pipe.energy(latents=latents, groups=i)) for i in groups)
    text = Provenance.of_decoded(pipe, encoder=True).saying(sheet="reconstruction").text()
    png = png_bytes(pipe.decode(latents)[0], text)
    predictions = _predictions(pipe, latents)[0]
    density = _densities(pipe, latents)[0]
    return DemoImage(png, "reconstructed", Origin(step), energies, predictions, latents, density)


def edit(pipe: "Pipeline", step: Edit, source: DemoImage, watch: Watch) -> list[DemoImage]:
    """The source, what the model makes of it, and that edited."""
    options = edit_options(step)
    watch.total = _steps(pipe, options, 1)
    with within_memory(options.batch):
        samples = pipe.edit(
            [source.image],
            strength=options.strength,
            method=options.method,
            batch_size=options.batch,
            progress=watch,
            **options.settings,
            **options.condition,
        )
        between = _reconstruction(pipe, Reconstruct(step.model, step.source), source)
    provenance = editing.provenance_of(pipe, options)
    return [source, between, *_images(pipe, samples, step, (options, provenance))]


def average(pipe: "Pipeline") -> DemoImage:
    """The image of u = 0, the middle of N(0, I)."""
    import torch

    from hebm_sample.io.images import png_bytes

    zero = tuple(torch.zeros(1, *shape) for shape in pipe.generator.latent_shapes)
    return DemoImage(png_bytes(pipe.decode(zero)[0]), "all latents at zero: the model's average")
