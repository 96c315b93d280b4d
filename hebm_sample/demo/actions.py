"""The work behind the page's buttons: a recipe and a pipeline in, images out.

    draw           samples after each noise level, by `Pipeline.stream`
    vary           the top groups of u_0 kept, the others sampled anew
    reconstruct    decode(u), u ~ q(u | x)
    edit           before, reconstructed, edited

Samples are drawn with the options and the batch size of the commands, so their files are those
that the commands write, to the byte.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hebm_sample.cli.work import editing, sampling
from hebm_sample.cli.work.model import within_memory
from hebm_sample.demo.images import MAX_IMAGES, DemoImage, of_latents, of_samples
from hebm_sample.demo.options import sample_options
from hebm_sample.demo.recipes import named_edit
from hebm_sample.demo.steps import Draw, Edit, Reconstruct, Vary
from hebm_sample.errors import UserInputError
from hebm_sample.pipeline.alignment import Framed
from hebm_sample.pipeline.provenance import Provenance

if TYPE_CHECKING:
    from hebm_sample.cli.requests.sample import SampleOptions
    from hebm_sample.pipeline.pipeline import Pipeline

__all__ = [
    "Stopped",
    "Watch",
    "check_count",
    "draw",
    "edit",
    "of_source",
    "reconstruct",
    "steps_of",
    "vary",
]


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


def check_count(seeds: tuple[int, ...], most: int = MAX_IMAGES) -> None:
    """`UserInputError` for more seeds than the page draws at a time."""
    if not 1 <= len(seeds) <= most:
        raise UserInputError(
            f"{len(seeds)} seeds are {len(seeds)} images; this page draws at most "
            f"{most} at a time: `hebm-sample` draws thousands"
        )


def steps_of(pipe: "Pipeline", options: Any, count: int) -> int:
    """Gradients of so many images."""
    return pipe.total_steps(num_images=count, batch_size=options.batch, steps=options.steps)


def of_source(found: Sequence[DemoImage], source: DemoImage) -> list[DemoImage]:
    """Images with the files that their source's lines read, and with its photograph."""
    return [replace(image, files=source.files, photo=source.photo) for image in found]


def draw(pipe: "Pipeline", step: Draw, watch: Watch) -> Iterator[list[DemoImage]]:
    """The images after each noise level; the last are finished."""
    options = _counted(step)
    watch.total = steps_of(pipe, options, len(step.seeds))
    provenance = sampling.provenance_of(pipe, options)
    captions = [f"seed {seed}" for seed in step.seeds]

    def text(index: int) -> dict[str, str]:
        return sampling.single_text(options, provenance, step.seeds[index])

    with within_memory(options.batch):
        states = pipe.stream(
            seeds=list(step.seeds),
            batch_size=options.batch,
            progress=watch,
            **options.settings,
            **options.condition,
        )
        for samples in states:
            yield of_samples(pipe, samples, step, captions, None if samples.level else text)


def vary(pipe: "Pipeline", step: Vary, source: DemoImage, watch: Watch) -> list[DemoImage]:
    """The source, and its variations. A source of several seeds is sampled again, alone."""
    options, sampled = _counted(step), step.sampled_source
    again = sampled is not None and sampled != step.source.step
    watch.total = steps_of(pipe, options, len(step.seeds)) + again * steps_of(pipe, options, 1)
    given: dict[str, Any] = {**options.settings, **options.condition, "progress": watch}
    given["batch_size"] = options.batch
    with within_memory(options.batch):
        if again and sampled is not None:
            begin: Any = pipe(seeds=list(sampled.seeds), **given)
        else:
            begin = Framed([source.image]) if source.latents is None else source.latents
        keep, seeds = slice(0, step.keep), list(step.seeds)
        samples = pipe.vary(begin, keep, len(seeds), seeds=seeds, **given)
    facts = {"sheet": "variations", "keep_top": step.keep}
    provenance = sampling.provenance_of(pipe, options).saying(**facts)

    def text(index: int) -> dict[str, str]:
        if sampled is None:
            return provenance.of_seeds(seeds[index]).text(single=True)
        return sampling.single_text(options, provenance, seeds[index])

    captions = [f"variation {seed}" for seed in seeds]
    found = of_samples(pipe, samples, step, captions, text)
    return [source, *of_source(found, source)]


def _counted(step: Draw | Vary) -> "SampleOptions":
    check_count(step.seeds)
    return sample_options(step)


def reconstruct(pipe: "Pipeline", step: Reconstruct, source: DemoImage) -> list[DemoImage]:
    """The source, and what the model makes of it."""
    return [source, _reconstruction(pipe, step, source)]


def _reconstruction(pipe: "Pipeline", step: Reconstruct, source: DemoImage) -> DemoImage:
    from hebm_sample.pipeline.pipeline import Samples

    latents = pipe.encode(Framed([source.image]))
    text = Provenance.of_decoded(pipe, encoder=True).saying(sheet="reconstruction").text()
    samples = Samples(pipe.decode(latents), latents, None, ())
    found = of_latents(pipe, samples, step, ["reconstructed"], lambda index: text)
    return of_source(found, source)[0]


def edit(pipe: "Pipeline", step: Edit, source: DemoImage, watch: Watch) -> list[DemoImage]:
    """The source, what the model makes of it, and that edited."""
    options = named_edit(step)
    watch.total = steps_of(pipe, options, 1)
    with within_memory(options.batch):
        samples = pipe.edit(
            Framed([source.image]),  # what is to be said of its framing was said
            strength=options.strength,
            method=options.method,
            batch_size=options.batch,
            progress=watch,
            **options.settings,
            **options.condition,
        )
        between = _reconstruction(pipe, Reconstruct(step.model, step.source), source)
    provenance = editing.provenance_of(pipe, options)

    def text(index: int) -> dict[str, str]:
        return editing.single_text(options, provenance, index)

    found = of_samples(pipe, samples, step, ["edited"], text)
    return [source, between, *of_source(found, source)]
