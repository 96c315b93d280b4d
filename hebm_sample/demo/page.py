"""The page: which parts it has, how they lie, and what they set going (`handlers`).

Whatever runs a chain goes through one queue, one visitor at a time, so that two visitors do not
fight over one model.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from gradio.themes import Base, Soft

from hebm_sample.demo import view
from hebm_sample.demo.actions import MAX_UPLOAD_BYTES
from hebm_sample.demo.controls import QUICK, Controls, target_values
from hebm_sample.demo.handlers import Handlers, Shown
from hebm_sample.demo.studio import Studio

__all__ = ["build", "launch"]

MOST_WAITING = 16
MOST_VISITORS = 32
STATE_SECONDS = 3600
CACHE_SECONDS = 600

_WORK: dict[str, Any] = {
    "concurrency_id": "chain",
    "concurrency_limit": 1,
    "show_progress": "full",
    "api_visibility": "private",
    "trigger_mode": "once",
}
# Short, and so apart: whoever opens the page sees a model at once, even while others draw.
_OPEN: dict[str, Any] = _WORK | {"concurrency_id": "open"}
_TO_CONTROLS = (
    "() => { if (window.innerWidth < 761) "
    "document.getElementById('hebm-controls').scrollIntoView({behavior: 'smooth'}); }"
)
_TO_STAGE = (
    "() => { if (window.innerWidth < 761) "
    "document.getElementById('hebm-stage').scrollIntoView({behavior: 'smooth'}); }"
)


@dataclass(frozen=True)
class _Stage:
    """What every action writes to."""

    status: gr.HTML
    html: gr.HTML
    python: gr.Code
    shell: gr.Code
    shown: gr.State
    stop: gr.Button
    to_vary: gr.Button
    to_edit: gr.Button

    @property
    def parts(self) -> list[Any]:
        """In the order in which handlers return them."""
        return [self.status, self.html, self.python, self.shell, self.shown]


def build(studio: Studio) -> gr.Blocks:
    """The page for these models; the first of them is shown at first."""
    handlers, first = Handlers(studio), next(iter(studio.offers))
    with gr.Blocks(
        title="hebm_sample",
        analytics_enabled=False,
        delete_cache=(CACHE_SECONDS, CACHE_SECONDS),
        fill_width=True,
    ) as page:
        gr.HTML(view.HEADER, apply_default_css=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=330, elem_id="hebm-controls"):
                model = gr.Dropdown(
                    list(studio.offers),
                    value=first,
                    label="Model",
                    filterable=False,
                    elem_id="hebm-model",
                )
                note = gr.HTML(view.model_note(studio.offers[first]), apply_default_css=False)
                with gr.Tabs() as tabs:
                    controls = Controls(studio, first)
            with gr.Column(scale=7, min_width=330, elem_id="hebm-stage"):
                stage = _stage(first)
        _connect_model(page, handlers, controls, model, note, stage)
        _connect_work(handlers, controls, model, stage)
        for button, tab in ((stage.to_vary, "vary"), (stage.to_edit, "edit")):
            button.click(partial(_open_tab, tab), None, tabs, js=_TO_CONTROLS, **QUICK)
        stage.html.select(handlers.pick, stage.shown, stage.parts[1:], **QUICK)
        stage.stop.click(handlers.stop, None, None, **QUICK)
        page.unload(handlers.stop)
    return page


def _open_tab(tab: str) -> Any:
    return gr.update(selected=tab)


def _stage(first: str) -> _Stage:
    """Made inside the context of the page."""
    with gr.Row(elem_id="hebm-line"):
        status = gr.HTML(view.status("loading"), elem_id="hebm-status", apply_default_css=False)
        stop = gr.Button(
            "Stop", variant="stop", interactive=False, elem_id="hebm-stop", scale=0, min_width=90
        )
    html = gr.HTML(js_on_load=view.PICK, elem_id="hebm-images", apply_default_css=False)
    with gr.Row():
        to_vary = gr.Button("Vary this one", elem_id="hebm-to-vary", min_width=120)
        to_edit = gr.Button("Edit this one", elem_id="hebm-to-edit", min_width=120)
    with gr.Accordion("The same in Python and in the shell", open=False, elem_id="hebm-lines"):
        how: dict[str, Any] = {
            "wrap_lines": True,
            "lines": 1,
            "show_line_numbers": False,
            "interactive": False,
        }
        python = gr.Code(language="python", label="Python", elem_id="hebm-python", **how)
        shell = gr.Code(language="shell", label="Shell", elem_id="hebm-shell", **how)
    shown = gr.State(Shown(first, ()), time_to_live=STATE_SECONDS)
    return _Stage(status, html, python, shell, shown, stop, to_vary, to_edit)


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
    parts = [*stage.parts, note, controls.keep]
    page.load(handlers.open, model, parts, **_OPEN, show_progress_on=stage.status)
    model.change(refresh, model, targets, **QUICK)
    model.change(handlers.open, model, parts, **_OPEN, show_progress_on=stage.status)


def _jobs(handlers: Handlers, c: Controls) -> list[tuple[gr.Button, Any, list[Any]]]:
    """Which button does what, and with which values."""
    weights = [target.weight for target in c.targets if target.weight is not None]
    sampling = [c.temperature, c.sampler, c.steps, *(t.value for t in c.targets), *weights]
    editing = [c.strength, c.guidance, c.method, c.edit_steps]
    return [
        (c.draw, handlers.draw, [c.seeds, *sampling]),
        (c.vary, handlers.vary, [c.keep, c.vary_seeds]),
        (c.reconstruct, handlers.reconstruct, []),
        (c.edit, handlers.edit, [*editing, *(t.value for t in c.edit_targets)]),
    ]


def _connect_work(
    handlers: Handlers, controls: Controls, model: gr.Dropdown, stage: _Stage
) -> None:
    given = [model, stage.shown]
    for button, work, values in _jobs(handlers, controls):
        armed = button.click(handlers.arm, None, stage.stop, js=_TO_STAGE, **QUICK)
        armed.then(
            work,
            [*given, *values],
            [*stage.parts, stage.stop],
            show_progress_on=stage.status,
            **_WORK,
        )
    controls.file.upload(
        handlers.upload,
        [*given, controls.file],
        [*stage.parts, controls.file],
        show_progress_on=stage.status,
        **_OPEN,
    )


def launch(page: gr.Blocks, host: str, port: int | None, **options: Any) -> str:
    """Serve it from a thread; its address.

    Arguments:
        host, port: Where to listen; without a port the first free one from 7860 on.
        options: As of `gr.Blocks.launch`.

    Raises:
        OSError: The port is taken, or there is no such host.
    """
    page.queue(max_size=MOST_WAITING, default_concurrency_limit=1)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=MAX_UPLOAD_BYTES,
        state_session_capacity=MOST_VISITORS,
        ssr_mode=False,
        footer_links=[],
        theme=_theme(),
        head=f"<style>{view.CSS}</style>",  # gradio would put words before its selectors
        **options,
    )
    return str(address)


def _theme() -> Base:
    """Plain, and in the visitor's own fonts: none is fetched."""
    theme = Soft(
        primary_hue="teal",
        neutral_hue="stone",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return theme.set(
        body_background_fill="*neutral_50",
        block_title_background_fill="none",
        block_title_text_color="*body_text_color",
        block_title_padding="0",
        block_label_background_fill="none",
        block_label_text_color="*body_text_color",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
    )
