"""More work behind the page's buttons: images that are made of parts of others.

    inpaint        filled in where a mask is white
    mix            the top groups of one, the others of another
    interpolate    on the way from one to another

As in `actions`, with the options of the commands.
"""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hebm_sample.cli.work import editing, sampling
from hebm_sample.cli.work.model import within_memory
from hebm_sample.demo.actions import Watch, check_count, steps_of
from hebm_sample.demo.images import MAX_IMAGES, DemoImage, of_latents, of_samples
from hebm_sample.demo.options import mix_options, sample_options
from hebm_sample.demo.recipes import named_inpaint
from hebm_sample.demo.steps import Draw, Inpaint, Interpolate, Mix
from hebm_sample.errors import UserInputError
from hebm_sample.pipeline.alignment import Framed

if TYPE_CHECKING:
    from PIL.Image import Image

    from hebm_sample.pipeline.pipeline import Pipeline, Samples

__all__ = ["inpaint", "interpolate", "mix", "sampled", "stated_mask"]


def sampled(pipe: "Pipeline", step: Draw, watch: Watch) -> list[DemoImage]:
    """The finished images of seeds, to make others of."""
    check_count(step.seeds)
    options = sample_options(step)
    watch.total += steps_of(pipe, options, len(step.seeds))
    provenance = sampling.provenance_of(pipe, options)
    with within_memory(options.batch):
        samples = pipe(
            seeds=list(step.seeds),
            batch_size=options.batch,
            progress=watch,
            **options.settings,
            **options.condition,
        )

    def text(index: int) -> dict[str, str]:
        return sampling.single_text(options, provenance, step.seeds[index])

    return of_samples(pipe, samples, step, [f"seed {seed}" for seed in step.seeds], text)


def stated_mask(png: bytes, side: int) -> "Image":
    """A mask as the page's brush makes it: black and white, `side` x `side`.

    Raises:
        UserInputError: It is something else, covers nothing, or everything.
    """
    from hebm_sample.io.images import open_image

    if not png:
        raise UserInputError(f"nothing is painted; {_HOW}")
    file = io.BytesIO(png)
    file.name = "the mask"
    mask = open_image(file).convert("L").point([0] * 128 + [255] * 128)
    if mask.size != (side, side):
        raise UserInputError(f"the mask is of another size than the image; {_HOW}")
    low, high = mask.getextrema()
    if not high:
        raise UserInputError(f"nothing is painted; {_HOW}")
    if low:
        raise UserInputError(
            "everything is painted, so nothing of the image is known; leave some of it"
        )
    return mask


_HOW = "paint over what is to be filled in"


def inpaint(
    pipe: "Pipeline", step: Inpaint, source: DemoImage, mask: "Image", watch: Watch
) -> list[DemoImage]:
    """The source, and a filling for each seed.

    Arguments:
        mask: Of the model's size, white where to fill in.
    """
    from hebm_sample.io.images import png_bytes

    check_count(step.seeds, MAX_IMAGES - 1)
    options, seeds = named_inpaint(step), step.seeds
    watch.total = steps_of(pipe, options, len(seeds))
    with within_memory(options.batch):
        samples = pipe.inpaint(
            Framed([source.image] * len(seeds)),
            mask,
            strength=options.strength,
            seeds=list(seeds),
            batch_size=options.batch,
            progress=watch,
            **options.settings,
            **options.condition,
        )
    provenance = editing.provenance_of(pipe, options)

    def text(index: int) -> dict[str, str]:
        return editing.single_text(options, provenance, index)

    found = of_samples(pipe, samples, step, [f"filling {seed}" for seed in seeds], text)
    files = (*source.files, (step.mask_name, png_bytes(mask)))
    # Known pixels are the image's own, so the latents are not quite what is seen.
    own: dict[str, Any] = {"latents": None, "files": files, "photo": source.photo}
    return [source, *(replace(each, **own) for each in found)]


def mix(pipe: "Pipeline", step: Mix, coarse: DemoImage, fine: DemoImage) -> list[DemoImage]:
    """Both, and the mixture."""
    options = mix_options(step)
    samples = pipe.mix(_parts(coarse), _parts(fine), step.cut)
    text = samples.provenance[0].text()
    if options is not None:
        text = sampling.provenance_of(pipe, options).of_seeds(*options.chosen_seeds).text()
    found = of_latents(pipe, samples, step, ["mixed"], lambda index: text)
    return [coarse, fine, *_with_files(found, coarse, fine)]


def _parts(image: DemoImage) -> Any:
    """What `Pipeline.mix` takes."""
    return Framed([image.image]) if image.latents is None else image.latents


def interpolate(
    pipe: "Pipeline", step: Interpolate, first: DemoImage, second: DemoImage
) -> list[DemoImage]:
    """The images from one to the other, both as the model reads them."""
    if not 2 <= step.count <= MAX_IMAGES:
        raise UserInputError(f"{step.count} frames were asked for; give 2 to {MAX_IMAGES}")
    a, b = Framed([first.image]), Framed([second.image])
    samples: Samples = pipe.interpolate(a, b, step.count)
    said = samples.provenance
    captions = [f"{100 * i // (step.count - 1)} %" for i in range(step.count)]
    found = of_latents(pipe, samples, step, captions, lambda index: said[index].text())
    return _with_files(found, first, second)


def _with_files(found: Sequence[DemoImage], *sources: DemoImage) -> list[DemoImage]:
    """Images with the files that their sources' lines read."""
    files = tuple(dict.fromkeys(file for source in sources for file in source.files))
    return [replace(image, files=files) for image in found]
