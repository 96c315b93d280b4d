"""The page: which parts it has, how they lie, and what they set going (`handlers`).

Whatever runs a chain goes through one queue, one visitor at a time, so that two visitors do not
fight over one model.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from hebm_sample.demo import client, view
from hebm_sample.demo.controls import QUICK, Controls, target_values
from hebm_sample.demo.drawings import drawings
from hebm_sample.demo.handlers import Handlers
from hebm_sample.demo.serving import Page, launch
from hebm_sample.demo.studio import Studio
from hebm_sample.presets.crops import crop_for

__all__ = ["build", "launch"]

_WORK: dict[str, Any] = {
    "concurrency_id": "chain",
    "concurrency_limit": 1,
    "show_progress": "full",
    "api_visibility": "private",
    "trigger_mode": "once",
}
# Short, and so apart: whoever opens the page sees a model at once, even while others draw.
_OPEN: dict[str, Any] = _WORK | {"concurrency_id": "open"}
# Which button below the images opens which tab.
_NEXT = {"Vary this": "vary", "Edit this": "edit", "Inpaint this": "inpaint"}


@dataclass(frozen=True)
class _Stage:
    """What every action writes to."""

    status: gr.HTML
    html: gr.HTML
    facts: gr.HTML
    python: gr.Code
    shell: gr.Code
    stop: gr.Button
    ticket: gr.Textbox
    paste: gr.Button
    next: dict[str, gr.Button]

    @property
    def parts(self) -> list[Any]:
        """In the order in which handlers return them."""
        return [self.status, self.html, self.facts, self.python, self.shell, self.paste]


def build(studio: Studio) -> Page:
    """The page for these models; the first of them is shown at first."""
    crops = {crop_for(offer.config) is not None for offer in studio.offers.values()}
    samples = drawings(faces=True in crops, places=False in crops)
    handlers, first = Handlers(studio, samples), next(iter(studio.offers))
    with Page(title="hebm_sample", analytics_enabled=False, fill_width=True) as page:
        page.visitors = handlers.visitors
        gr.HTML(view.HEADER, apply_default_css=False)
        with gr.Row(equal_height=False, elem_id="hebm-page"):
            with gr.Column(scale=4, min_width=330, elem_id="hebm-controls"):
                model = gr.Dropdown(
                    list(studio.offers),
                    value=first,
                    label="Model",
                    filterable=False,
                    elem_id="hebm-model",
                )
                note = gr.HTML(view.model_note(studio.offers[first]), apply_default_css=False)
                controls = Controls(studio, first, samples)
            with gr.Column(scale=7, min_width=330, elem_id="hebm-stage"):
                stage = _stage()
        _connect_model(page, handlers, controls, model, note, stage)
        _connect_work(handlers, controls, model, stage)
        _connect_hand(page, handlers, controls, model, stage)
    return page


def _stage() -> _Stage:
    """Made inside the context of the page."""
    with gr.Row(elem_id="hebm-line"):
        status = gr.HTML(view.status("loading"), elem_id="hebm-status", apply_default_css=False)
        stop = gr.Button(
            "Stop", variant="stop", interactive=False, elem_id="hebm-stop", scale=0, min_width=90
        )
        ticket = gr.Textbox("", visible=False)  # of the job that comes next; it goes along with it
    with gr.Row(elem_id="hebm-view"):
        with gr.Column(scale=3, min_width=200, elem_id="hebm-seen"):
            html = gr.HTML(
                js_on_load=client.PICK + client.PAINT + client.DROP,
                elem_id="hebm-images",
                apply_default_css=False,
            )
        with gr.Column(scale=2, min_width=200, elem_id="hebm-about"):
            facts = gr.HTML(elem_id="hebm-facts", apply_default_css=False)
    with gr.Row(elem_id="hebm-next"):
        buttons = {
            tab: gr.Button(text, elem_id=f"hebm-to-{tab}", min_width=100)
            for text, tab in _NEXT.items()
        }
        paste = gr.Button(
            "Put back into the photo", visible=False, elem_id="hebm-paste", min_width=100
        )
    return _Stage(status, html, facts, *_lines(), stop, ticket, paste, buttons)


def _lines() -> tuple[gr.Code, gr.Code]:
    with gr.Accordion("The same in Python and in the shell", open=False, elem_id="hebm-lines"):
        how: dict[str, Any] = {
            "wrap_lines": True,
            "lines": 1,
            "show_line_numbers": False,
            "interactive": False,
        }
        python = gr.Code(language="python", label="Python", elem_id="hebm-python", **how)
        shell = gr.Code(language="shell", label="Shell", elem_id="hebm-shell", **how)
    return python, shell


def _connect_model(
    page: gr.Blocks,
    handlers: Handlers,
    controls: Controls,
    model: gr.Dropdown,
    note: gr.HTML,
    stage: _Stage,
) -> None:
    groups = (controls.targets, controls.edit_targets)

    def refresh(label: str) -> list[Any]:
        offer, updates = handlers.studio.offers[label], []
        for group in groups:
            for i in range(len(group)):
                updates.append(gr.update(visible=i < len(offer.symbols)))
                updates.append(gr.update(**target_values(offer, i)))
        return updates

    targets = [part for group in groups for each in group for part in (each.box, each.value)]
    own = [controls.keep, controls.cut, controls.align, controls.temperature]
    parts = [*stage.parts, note, *own]
    asked = [model, controls.align]
    page.load(handlers.open, asked, parts, **_OPEN, show_progress_on=stage.status)
    model.change(refresh, model, targets, **QUICK)
    model.change(handlers.open, asked, parts, **_OPEN, show_progress_on=stage.status)


def _jobs(handlers: Handlers, c: Controls, stage: _Stage) -> list[tuple[Any, Any, list[Any]]]:
    """Which button does what, and with which values."""
    weights = [target.weight for target in c.targets if target.weight is not None]
    drawing = [c.temperature, c.sampler, c.steps, *(t.value for t in c.targets), *weights]
    editing = [c.strength, c.guidance, c.method, c.edit_steps]
    inpainting = [c.inpaint_seeds, c.inpaint_strength, c.inpaint_steps, c.mask]
    return [
        (c.draw, handlers.draw, [c.seeds, *drawing]),
        (c.vary, handlers.vary, [c.keep, c.vary_seeds]),
        (c.reconstruct, handlers.reconstruct, []),
        (c.edit, handlers.edit, [*editing, *(t.value for t in c.edit_targets)]),
        (c.inpaint, handlers.inpaint, inpainting),
        (c.mix, handlers.mix, [c.coarse, c.fine, c.cut, *drawing]),
        (c.interpolate, handlers.interpolate, [c.first, c.second, c.frames, *drawing]),
        (stage.paste, handlers.paste, []),
    ]


def _connect_work(
    handlers: Handlers, controls: Controls, model: gr.Dropdown, stage: _Stage
) -> None:
    for button, work, values in _jobs(handlers, controls, stage):
        armed = button.click(handlers.arm, None, [stage.stop, stage.ticket], **QUICK)
        armed.then(
            work,
            [model, stage.ticket, *values],
            [*stage.parts, stage.stop],
            show_progress_on=stage.status,
            js=client.MASK if controls.mask in values else None,
            **_WORK,
        )


def _connect_hand(
    page: gr.Blocks, handlers: Handlers, controls: Controls, model: gr.Dropdown, stage: _Stage
) -> None:
    """What visitors do with their hands beside the main buttons."""
    controls.upload.give(
        handlers.give,
        [model, controls.align],
        stage.parts,
        show_progress_on=stage.status,
        **_OPEN,
    )
    controls.clear.click(None, None, None, js="() => window.hebmMask.clear()")
    for tab, button in stage.next.items():
        show = partial(_open_tab, tab)
        button.click(show, None, controls.tabs, js=client.TO_CONTROLS, **QUICK)
    stage.html.select(handlers.pick, None, stage.parts, **QUICK)
    stage.stop.click(handlers.stop, None, None, **QUICK)
    page.unload(handlers.leave)


def _open_tab(tab: str) -> Any:
    return gr.update(selected=tab)
