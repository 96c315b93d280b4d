"""What the page's buttons do: values of its parts in, new values out.

A visitor's Stop, and leaving the page, end that visitor's chain at its next gradient. Images
travel inside the page, so none of them is written to this machine's disk; uploads are, by gradio,
and are removed once they are read. What goes wrong becomes a line in the page.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from hebm_sample.demo import actions, view
from hebm_sample.demo.actions import DemoImage, Stopped, Watch
from hebm_sample.demo.recipes import (
    Draw,
    Edit,
    Origin,
    Reconstruct,
    Settings,
    Step,
    Vary,
    python_lines,
    shell_lines,
)
from hebm_sample.demo.studio import Offer, Studio
from hebm_sample.errors import HebmError, UserInputError
from hebm_sample.io.seeds import parse_seeds

__all__ = ["Handlers", "Shown"]

MOST_STOPS = 1000
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
        return origin


Work = Callable[[Watch], Iterator[Shown]]


class Handlers:
    """What the buttons do. Inputs come from strangers: gradio checks them against the page's
    choices and ranges, and the package's own checks follow.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._stops: OrderedDict[str, threading.Event] = OrderedDict()

    # Stop

    def arm(self, request: gr.Request) -> Any:
        """A new chain begins, or waits for its turn: Stop means that one."""
        self._stops[str(request.session_hash)] = threading.Event()
        while len(self._stops) > MOST_STOPS:
            self._stops.popitem(last=False)[1].set()
        return gr.update(interactive=True)

    def stop(self, request: gr.Request) -> None:
        """Ends the visitor's chain at its next gradient."""
        event = self._stops.get(str(request.session_hash))
        if event is not None:
            event.set()

    # Work

    def _perform(
        self, request: gr.Request, progress: gr.Progress, before: Shown, work: Work
    ) -> Iterator[tuple[Any, ...]]:
        """Outputs as the work goes on; what goes wrong becomes a line, and what was shown
        before stays.
        """
        stop = self._stops.get(str(request.session_hash)) or threading.Event()
        watch = Watch(stop, lambda share: progress(share, desc="sampling"))
        start, shown = time.perf_counter(), before
        try:
            if stop.is_set():
                raise Stopped
            for shown in work(watch):
                yield (view.status("sampling"), *self._show(shown), shown, gr.update())
            text = f"done in {time.perf_counter() - start:.1f} s"
            yield (view.status(text), *self._show(shown), shown, gr.update(interactive=False))
        except Stopped:
            yield self._kept(before, "stopped", False)
        except HebmError as error:
            yield self._kept(before, str(error), True)

    def _kept(self, before: Shown, text: str, error: bool) -> tuple[Any, ...]:
        message = view.status(" ".join(text.split()), error)
        return (message, *self._show(before), before, gr.update(interactive=False))

    def _show(self, shown: Shown) -> tuple[str, str, str]:
        """The stage, and the lines that make the chosen image."""
        if not shown.images:
            return "", NO_LINES, NO_LINES
        offer, origin = self.studio.offers[shown.label], shown.image.origin
        html = view.stage(shown.images, shown.chosen, offer.resolutions)
        if origin is None:
            return html, NO_LINES, NO_LINES
        return html, python_lines(origin), shell_lines(origin)

    def _of(self, label: str) -> tuple[Offer, Any]:
        offer = self.studio.offers[label]
        return offer, self.studio.pipeline(offer.name)

    def open(self, label: str) -> tuple[Any, ...]:
        """A model was chosen: its average image."""
        offer, shown, line = self.studio.offers[label], Shown(label, ()), view.status("ready")
        try:
            shown = Shown(label, (actions.average(self.studio.pipeline(offer.name)),))
        except HebmError as error:
            line = view.status(" ".join(str(error).split()), error=True)
        most = offer.groups - 1
        keep = gr.update(maximum=most, value=min(most, max(1, offer.groups // 2)))
        return (line, *self._show(shown), shown, view.model_note(offer), keep)

    def draw(
        self, request: gr.Request, progress: gr.Progress = _PROGRESS, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Images of seeds."""
        label, before, seeds, temperature, sampler, steps, *targets = values

        def work(watch: Watch) -> Iterator[Shown]:
            offer, pipe = self._of(label)
            half = len(targets) // 2
            symbols, weights = _condition(offer, targets[:half]), targets[half:]
            guidance = {
                name: float(weight)
                for name, weight in zip(offer.symbols, weights, strict=False)
                if name in symbols
            }
            settings = Settings(
                symbols,
                guidance,
                sampler or None,
                None if steps in (None, 0) else int(steps),
                None if temperature in (None, 1.0) else float(temperature),
            )
            step = Draw(offer.name, settings, parse_seeds(seeds))
            for images in actions.draw(pipe, step, watch):
                yield Shown(label, tuple(images))

        yield from self._perform(request, progress, before, work)

    def vary(
        self, request: gr.Request, progress: gr.Progress = _PROGRESS, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Variations of the chosen image."""
        label, before, keep, seeds = values

        def work(watch: Watch) -> Iterator[Shown]:
            offer, pipe = self._of(label)
            origin = before.origin(label)
            step = Vary(
                offer.name, _settings_of(origin.step), parse_seeds(seeds), int(keep), origin
            )
            images = actions.vary(pipe, step, before.image, watch)
            yield Shown(label, tuple(images), 1)

        yield from self._perform(request, progress, before, work)

    def reconstruct(
        self, request: gr.Request, progress: gr.Progress = _PROGRESS, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """What the model makes of the chosen image."""
        label, before = values

        def work(watch: Watch) -> Iterator[Shown]:
            offer, pipe = self._of(label)
            step = Reconstruct(offer.name, before.origin(label))
            images = actions.reconstruct(pipe, step, before.image)
            yield Shown(label, tuple(images), len(images) - 1)

        yield from self._perform(request, progress, before, work)

    def edit(
        self, request: gr.Request, progress: gr.Progress = _PROGRESS, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """The chosen image, led to a condition."""
        label, before, strength, guidance, method, steps, *targets = values

        def work(watch: Watch) -> Iterator[Shown]:
            offer, pipe = self._of(label)
            origin, symbols = before.origin(label), _condition(offer, targets)
            if not symbols and method == "flow":
                raise UserInputError("choose a target; without a condition nothing changes")
            own_steps = None if steps in (None, 0) else int(steps)
            weights = dict.fromkeys(symbols, float(guidance))
            settings = Settings(symbols, weights, None, own_steps)
            step = Edit(offer.name, settings, float(strength), method, origin)
            images = actions.edit(pipe, step, before.image, watch)
            yield Shown(label, tuple(images), len(images) - 1)

        yield from self._perform(request, progress, before, work)

    def upload(self, label: str, before: Shown, path: str | None) -> tuple[Any, ...]:
        """A visitor's image becomes the chosen one; its file is removed."""
        if path is None:
            return view.status("ready"), *self._show(before), before, gr.update()
        try:
            _, pipe = self._of(label)
            shown = Shown(label, (actions.upload(pipe, path),))
            text, error = "your image, as the model sees it: its middle square", False
        except HebmError as failure:
            shown, text, error = before, " ".join(str(failure).split()), True
        finally:
            with suppress(OSError):
                Path(path).unlink()
        return view.status(text, error), *self._show(shown), shown, None

    def pick(self, before: Shown, event: gr.EventData) -> tuple[Any, ...]:
        """Another image becomes the large one."""
        index = getattr(event, "index", 0)
        index = index if isinstance(index, int) and 0 <= index < len(before.images) else 0
        shown = Shown(before.label, before.images, index)
        return (*self._show(shown), shown)


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
