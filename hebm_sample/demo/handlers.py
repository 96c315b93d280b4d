"""What the page's buttons do: values of its parts in, new values out.

A visitor's Stop, and leaving the page, end that visitor's chain at its next gradient; what they
see and give is kept under their session alone (`visitors`). Images travel inside the page, so none
of them is written to this machine's disk. What goes wrong becomes a line in the page.
"""

import base64
import binascii
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from hebm_sample.demo import actions, composing, photos, view
from hebm_sample.demo.actions import Stopped, Watch
from hebm_sample.demo.images import DemoImage, average
from hebm_sample.demo.recipes import python_lines, shell_lines
from hebm_sample.demo.steps import (
    Draw,
    Edit,
    Inpaint,
    Interpolate,
    Mix,
    Origin,
    PasteBack,
    Reconstruct,
    Settings,
    Step,
    Upload,
    Vary,
    steps_before,
)
from hebm_sample.demo.studio import Offer, Studio
from hebm_sample.demo.visitors import Visitor, Visitors
from hebm_sample.errors import HebmError, UserInputError
from hebm_sample.io.seeds import parse_seeds

__all__ = ["Handlers", "Shown"]

MOST_STEPS = 20  # that one image can come from
NO_LINES = "# draw an image first"
_PROGRESS = gr.Progress()


@dataclass(frozen=True)
class Shown:
    """What a visitor sees: a model's images, and the large one among them; none yet while the
    page is loading.
    """

    label: str
    images: tuple[DemoImage, ...]
    chosen: int = 0

    @property
    def image(self) -> DemoImage:
        """The chosen one."""
        return self.images[self.chosen]

    def origin(self, label: str) -> Origin:
        """Of the chosen image, to begin a step of the model `label` from."""
        origin = self.image.origin if self.images else None
        if origin is None or self.label != label:
            raise UserInputError("there is no image to begin from; draw one, or give your own")
        if isinstance(origin.step, PasteBack):
            raise UserInputError("a whole photograph is shown; choose a small image beside it")
        if len(steps_before(origin.step)) >= MOST_STEPS:
            raise UserInputError(
                f"this image took {MOST_STEPS} steps already; save it, and give it as your own"
            )
        return origin

    @property
    def is_own(self) -> bool:
        """Whether the chosen image is the visitor's own, or comes from one of theirs."""
        origin = self.image.origin if self.images else None
        steps = [] if origin is None else [origin.step, *steps_before(origin.step)]
        return any(isinstance(step, Upload) for step in steps)

    @property
    def can_be_pasted(self) -> bool:
        """Whether there is a photograph that the chosen image is from."""
        image = self.image if self.images else None
        made = image.origin.step if image is not None and image.origin is not None else None
        return image is not None and image.photo is not None and not isinstance(made, Upload)


Work = Callable[[Watch, Shown], Iterator[Shown]]


class Handlers:
    """What the buttons do. Inputs come from strangers: gradio checks them against the page's
    choices and ranges, and the package's own checks follow.

    Arguments:
        studio: The models.
        samples: Files of images to click, in place of one's own.
    """

    def __init__(self, studio: Studio, samples: Sequence[bytes] = ()) -> None:
        self.studio, self.visitors, self._samples = studio, Visitors(), samples

    def _visitor(self, request: gr.Request) -> Visitor:
        address = request.client.host if request.client is not None else ""
        return self.visitors.of(str(request.session_hash), str(address))

    # Stop

    def arm(self, request: gr.Request) -> Any:
        """A new chain begins, or waits for its turn: Stop means that one."""
        return gr.update(interactive=True), self._visitor(request).renew()

    def stop(self, request: gr.Request) -> None:
        """Ends the visitor's chain at its next gradient."""
        self._visitor(request).halt()

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self.visitors.leave(str(request.session_hash))

    # Work

    def _perform(
        self, request: gr.Request, progress: gr.Progress, job: tuple[str, str], work: Work
    ) -> Iterator[tuple[Any, ...]]:
        """Outputs as the work goes on; what goes wrong becomes a line, and what was shown
        before stays, or what was opened meanwhile.

        Arguments:
            job: The model's label, and the ticket.
        """
        (label, ticket), visitor = job, self._visitor(request)
        opened = visitor.opened
        before = visitor.shown or Shown(label, ())
        start, shown, line, error = time.perf_counter(), before, "stopped", False
        with self.visitors.busy(visitor, ticket) as stop:
            watch = Watch(stop, lambda share: progress(share, desc="sampling"))
            try:
                if stop.is_set():
                    raise Stopped
                for shown in work(watch, before):
                    if visitor.opened != opened:
                        raise Stopped
                    visitor.shown = shown
                    yield (*self._show(shown, view.status("sampling")), gr.update())
                line = f"done in {time.perf_counter() - start:.1f} s"
            except Stopped:
                shown = before
            except HebmError as failure:
                shown, line, error = before, _line(failure), True
            if visitor.opened != opened:
                yield (*(gr.update(),) * 6, gr.update(interactive=False))
                return
            visitor.shown = shown
        yield (*self._show(shown, view.status(line, error)), gr.update(interactive=False))

    def _show(self, shown: Shown, line: Any) -> tuple[Any, ...]:
        """The line, the images, the lines that make the chosen one, and whether it can be put
        back.
        """
        if not shown.images:
            return line, "", "", NO_LINES, NO_LINES, gr.update(visible=False)
        offer, origin = self.studio.offers[shown.label], shown.image.origin
        html = view.stage(shown.images, shown.chosen)
        facts = view.facts(shown.images, shown.chosen, offer.resolutions)
        lines = (NO_LINES,) * 2
        if origin is not None:
            lines = (python_lines(origin), shell_lines(origin))
        return line, html, facts, *lines, gr.update(visible=shown.can_be_pasted)

    def _of(self, label: str) -> tuple[Offer, Any]:
        offer = self.studio.offers[label]
        return offer, self.studio.pipeline(offer.name)

    def open(self, label: str, align: bool, request: gr.Request) -> tuple[Any, ...]:
        """A model was chosen: the visitor's own image as this model sees it, if that is what they
        look at; otherwise its average image.
        """
        offer, shown, line = self.studio.offers[label], Shown(label, ()), view.status("ready")
        visitor = self._visitor(request)
        own = visitor.own if visitor.shown is not None and visitor.shown.is_own else None
        try:
            if own is not None:
                shown, text = self._given_to(label, *own, align)
                line = view.status(text)
            else:
                shown = Shown(label, (average(self.studio.pipeline(offer.name)),))
        except HebmError as error:
            line = view.status(_line(error), error=True)
        _opened(visitor, shown)
        middle, most = max(1, offer.groups // 2), offer.groups - 1
        return (
            *self._show(shown, line),
            view.model_note(offer),
            gr.update(maximum=most, value=min(most, middle)),
            gr.update(maximum=offer.groups, value=middle),
            gr.update(visible=photos.aligns(offer.config)),
            gr.update(value=offer.temperature),
        )

    def draw(
        self, request: gr.Request, progress: gr.Progress = _PROGRESS, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Images of seeds."""
        label, ticket, seeds, *how = values

        def work(watch: Watch, _before: Shown) -> Iterator[Shown]:
            offer, pipe = self._of(label)
            step = Draw(offer.name, _drawing(offer, how), parse_seeds(seeds))
            for images in actions.draw(pipe, step, watch):
                yield Shown(label, tuple(images))

        yield from self._perform(request, progress, (label, ticket), work)

    def vary(
        self, request: gr.Request, progress: gr.Progress = _PROGRESS, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Variations of the chosen image."""
        label, ticket, keep, seeds = values

        def work(watch: Watch, before: Shown) -> Iterator[Shown]:
            offer, pipe = self._of(label)
            origin = before.origin(label)
            step = Vary(
                offer.name, _settings_of(origin.step), parse_seeds(seeds), int(keep), origin
            )
            images = actions.vary(pipe, step, before.image, watch)
            yield Shown(label, tuple(images), 1)

        yield from self._perform(request, progress, (label, ticket), work)

    def reconstruct(
        self, request: gr.Request, progress: gr.Progress = _PROGRESS, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """What the model makes of the chosen image."""
        label, ticket = values

        def work(_watch: Watch, before: Shown) -> Iterator[Shown]:
            offer, pipe = self._of(label)
            step = Reconstruct(offer.name, before.origin(label))
            images = actions.reconstruct(pipe, step, before.image)
            yield Shown(label, tuple(images), len(images) - 1)

        yield from self._perform(request, progress, (label, ticket), work)

    def edit(
        self, request: gr.Request, progress: gr.Progress = _PROGRESS, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """The chosen image, led to a condition."""
        label, ticket, strength, guidance, method, steps, *targets = values

        def work(watch: Watch, before: Shown) -> Iterator[Shown]:
            offer, pipe = self._of(label)
            origin, symbols = before.origin(label), _condition(offer, targets)
            if not symbols and method == "flow":
                raise UserInputError(_nothing_chosen(offer))
            weights = dict.fromkeys(symbols, float(guidance))
            settings = Settings(symbols, weights, None, _own_steps(steps))
            step = Edit(offer.name, settings, float(strength), method, origin)
            images = actions.edit(pipe, step, before.image, watch)
            yield Shown(label, tuple(images), len(images) - 1)

        yield from self._perform(request, progress, (label, ticket), work)

    def inpaint(
        self, request: gr.Request, progress: gr.Progress = _PROGRESS, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """The chosen image, filled in where the visitor painted."""
        label, ticket, seeds, strength, steps, mask = values

        def work(watch: Watch, before: Shown) -> Iterator[Shown]:
            offer, pipe = self._of(label)
            origin, settings = before.origin(label), Settings({}, {}, None, _own_steps(steps))
            step = Inpaint(offer.name, settings, parse_seeds(seeds), float(strength), origin)
            painted = composing.stated_mask(_bytes(mask), pipe.config.generator.image_size)
            images = composing.inpaint(pipe, step, before.image, painted, watch)
            yield Shown(label, tuple(images), 1)

        yield from self._perform(request, progress, (label, ticket), work)

    def mix(
        self, request: gr.Request, progress: gr.Progress = _PROGRESS, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """The top layers of one image with those below of another."""
        label, ticket, coarse, fine, cut, *how = values

        def work(watch: Watch, before: Shown) -> Iterator[Shown]:
            offer, pipe = self._of(label)
            a, b = self._pair(label, (coarse, fine), how, before, watch)
            step = Mix(offer.name, _origin(a), _origin(b), int(cut))
            yield Shown(label, tuple(composing.mix(pipe, step, a, b)), 2)

        yield from self._perform(request, progress, (label, ticket), work)

    def interpolate(
        self, request: gr.Request, progress: gr.Progress = _PROGRESS, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """From one image to another."""
        label, ticket, first, second, count, *how = values

        def work(watch: Watch, before: Shown) -> Iterator[Shown]:
            offer, pipe = self._of(label)
            a, b = self._pair(label, (first, second), how, before, watch)
            step = Interpolate(offer.name, _origin(a), _origin(b), int(count))
            images = composing.interpolate(pipe, step, a, b)
            yield Shown(label, tuple(images), len(images) // 2)

        yield from self._perform(request, progress, (label, ticket), work)

    def _pair(
        self,
        label: str,
        texts: tuple[str, str],
        how: Sequence[Any],
        before: Shown,
        watch: Watch,
    ) -> tuple[DemoImage, DemoImage]:
        """The images of two seeds, one of which can be the chosen image."""
        offer, pipe = self._of(label)
        seeds = [parse_seeds(text) for text in texts if text.strip()]
        if any(len(each) != 1 for each in seeds):
            raise UserInputError("a box names one seed; give a number, such as 7")
        flat = tuple(seed for each in seeds for seed in each)
        if not flat or len(set(flat)) < len(flat):
            raise UserInputError("both are the same image; give another seed")
        if len(flat) == 1:
            before.origin(label)  # or one line
        images = composing.sampled(pipe, Draw(offer.name, _drawing(offer, how), flat), watch)
        if len(flat) == 1:
            images.insert(0 if not texts[0].strip() else 1, before.image)
        return images[0], images[1]

    def paste(
        self, request: gr.Request, progress: gr.Progress = _PROGRESS, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """The chosen image in the photograph that it is from."""
        label, ticket = values

        def work(_watch: Watch, before: Shown) -> Iterator[Shown]:
            offer, pipe = self._of(label)
            origin, photo = before.origin(label), before.image.photo
            if photo is None:
                raise UserInputError("this image is from no photograph; align your own first")
            step = PasteBack(offer.name, photo.upload, origin)
            yield Shown(label, tuple(photos.paste_back(pipe, step, before.image)), 1)

        yield from self._perform(request, progress, (label, ticket), work)

    # At once

    def give(
        self, label: str, align: bool, event: gr.EventData, request: gr.Request
    ) -> tuple[Any, ...]:
        """A visitor's image becomes the chosen one."""
        visitor = self._visitor(request)
        before = visitor.shown or Shown(label, ())
        try:
            name, data = self._given(event)
            shown, line = self._given_to(label, name, data, align)
        except HebmError as failure:
            visitor.shown = before
            return self._show(before, view.status(_line(failure), True))
        visitor.own = name, data
        _opened(visitor, shown)
        return self._show(shown, view.status(line))

    def _given_to(self, label: str, name: str, data: bytes, align: bool) -> tuple[Shown, str]:
        """A file as a model sees it, and a line that says how."""
        offer, pipe = self._of(label)
        model = offer.name if align and photos.aligns(offer.config) else None
        image, line = photos.upload(pipe, name, data, model)
        if data in self._samples:  # which the lines read, and the visitor has not
            image = replace(image, files=((name, data),))
        return Shown(label, (image,)), line

    def _given(self, event: Any) -> tuple[str, bytes]:
        """Name and content of a file, or of a drawn image."""
        sample = getattr(event, "sample", None)
        if isinstance(sample, int) and 0 <= sample < len(self._samples):
            return f"drawing{sample + 1}.png", self._samples[sample]
        name, size = str(getattr(event, "name", "")), getattr(event, "size", 0)
        if isinstance(size, int) and size > photos.MAX_UPLOAD_BYTES:
            raise photos.too_large(name)
        return name, _bytes(getattr(event, "data", ""))

    def pick(self, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """Another image becomes the large one."""
        visitor = self._visitor(request)
        before = visitor.shown
        if before is None:
            return (gr.update(),) * 6
        index = getattr(event, "index", 0)
        index = index if isinstance(index, int) and 0 <= index < len(before.images) else 0
        visitor.shown = Shown(before.label, before.images, index)
        return self._show(visitor.shown, gr.update())


def _opened(visitor: Visitor, shown: Shown) -> None:
    """Another model or image is begun with: what runs or waits is about what was there before."""
    visitor.halt()
    visitor.opened += 1
    visitor.shown = shown


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _bytes(text: object) -> bytes:
    """What base64 says; nothing if it says nothing."""
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        return b""


def _origin(image: DemoImage) -> Origin:
    assert image.origin is not None
    return image.origin


def _nothing_chosen(offer: Offer) -> str:
    if offer.symbols:
        return "choose what should change; nothing is chosen yet"
    return (
        f"{offer.config.name} knows no attributes that could change; choose another model, or "
        "under Advanced the method with new noise"
    )


def _own_steps(steps: float | None) -> int | None:
    return None if steps in (None, 0) else int(steps)


def _drawing(offer: Offer, how: Sequence[Any]) -> Settings:
    """The settings of the tab Draw: temperature, sampler, steps, targets and their weights."""
    temperature, sampler, steps, *targets = how
    half = len(targets) // 2
    symbols, weights = _condition(offer, targets[:half]), targets[half:]
    guidance = {
        name: float(weight)
        for name, weight in zip(offer.symbols, weights, strict=False)
        if name in symbols
    }
    own = None if temperature in (None, offer.temperature) else float(temperature)
    return Settings(symbols, guidance, sampler or None, _own_steps(steps), own)


def _condition(offer: Offer, targets: Any) -> dict[str, str]:
    """The target of each of the model's variables that has one; the page may have more
    dropdowns.
    """
    return {name: str(value) for name, value in zip(offer.symbols, targets, strict=False) if value}


def _settings_of(step: Step) -> Settings:
    """Of variations: those of a sample; of an edit its condition, at weight 1."""
    if isinstance(step, Draw | Vary):
        return step.settings
    if isinstance(step, Edit):
        return Settings(step.settings.symbols, {})
    return Settings({}, {})
