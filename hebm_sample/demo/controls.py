"""The three tabs on the left: what to sample, how to vary it, what to edit."""

from dataclasses import dataclass
from typing import Any, get_args

import gradio as gr

from hebm_sample.config import EDIT_GUIDANCE, MAX_GUIDANCE, SamplerName
from hebm_sample.demo import view
from hebm_sample.demo.actions import MAX_IMAGES
from hebm_sample.demo.studio import Offer, Studio

__all__ = ["QUICK", "Controls", "Target", "target_values"]

MOST_WEIGHT = 16  # of the slider: what samples take
# As many seeds as the box names, from a random one on.
_DICE = """(text) => {
    const first = Math.floor(Math.random() * 1000000), range = text.split('-');
    const more = range.length === 2 ? Math.min(8, range[1] - range[0]) : 0;
    return more > 0 ? `${first}-${first + more}` : `${first}`;
}"""

# Listeners that answer at once, beside the queue; like all others no public API.
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class Target:
    """A variable of the condition: its value, and how much that weighs."""

    box: gr.Column
    value: gr.Dropdown
    weight: gr.Slider | None = None


def _steps(whose: str, elem_id: str) -> gr.Slider:
    """How many gradients; 0 leaves it to the model or the method."""
    info = f"Gradients in all; 0: the {whose}'s own number."
    return gr.Slider(0, 200, 0, step=1, label="Steps", info=info, elem_id=elem_id)


class Controls:
    """The three tabs. Made inside the context of the page."""

    def __init__(self, studio: Studio, first: str) -> None:
        self._studio, offer = studio, studio.offers[first]
        with gr.Tab("Draw", id="draw"):
            self._sampling(offer)
        with gr.Tab("Vary", id="vary"):
            self._varying(offer)
        with gr.Tab("Edit", id="edit"):
            self._editing(offer)

    def _sampling(self, offer: Offer) -> None:
        self.seeds, _ = _seeds("hebm-seeds", "7", "Seeds", f"Up to {MAX_IMAGES}: 7 or 0-8")
        self.draw = gr.Button("Draw", variant="primary", elem_id="hebm-draw")
        self.targets = self._targets(offer, "draw", weighed=True)
        with gr.Accordion("Advanced", open=False, elem_id="hebm-advanced"):
            self.temperature = gr.Slider(
                0, 2, 1.0, step=0.05, label="Temperature", info="Below 1: calmer, more alike."
            )
            self.sampler = gr.Dropdown(
                [("the model's", ""), *get_args(SamplerName)],
                value="",
                label="Sampler",
                filterable=False,
            )
            self.steps = _steps("model", "hebm-steps")

    def _varying(self, offer: Offer) -> None:
        gr.Markdown("Keeps the top layers of the chosen image and samples those below anew.")
        self.keep = gr.Slider(
            0,
            offer.groups - 1,
            offer.groups // 2,
            step=1,
            label="Layers kept, from the top",
            info="Few: another image. Many: other details.",
            elem_id="hebm-keep",
        )
        self.vary_seeds, _ = _seeds(
            "hebm-vary-seeds", "1-8", "Seeds of the variations", "One variation per seed"
        )
        self.vary = gr.Button("Vary", variant="primary", elem_id="hebm-vary")

    def _editing(self, offer: Offer) -> None:
        gr.Markdown("Changes the chosen image: a sample, or your own.")
        self.file = gr.File(
            label="Your own image",
            file_types=[".png", ".jpg", ".jpeg", ".webp"],
            type="filepath",
            height=150,
            elem_id="hebm-upload",
        )
        self.edit_targets = self._targets(offer, "edit", weighed=False)
        self._how_to_edit()
        with gr.Row():
            self.reconstruct = gr.Button("Reconstruct", elem_id="hebm-reconstruct", min_width=120)
            self.edit = gr.Button("Edit", variant="primary", elem_id="hebm-edit", min_width=120)

    def _how_to_edit(self) -> None:
        self.strength = gr.Slider(
            0.05,
            1,
            0.77,
            step=0.01,
            label="Strength",
            info="How far up into the noise: less changes less.",
            elem_id="hebm-strength",
        )
        self.guidance = gr.Slider(
            0,
            MAX_GUIDANCE,
            EDIT_GUIDANCE,
            step=1,
            label="Guidance",
            info="How strongly the condition guides.",
            elem_id="hebm-guidance",
        )
        with gr.Accordion("Advanced", open=False):
            self.method = gr.Radio(
                [("keep the rest", "flow"), ("with new noise", "noise")],
                value="flow",
                label="Method",
            )
            self.edit_steps = _steps("method", "hebm-edit-steps")

    def _targets(self, offer: Offer, tab: str, weighed: bool) -> list[Target]:
        """As many dropdowns as the model that has most needs; the others are hidden."""
        most = max(len(each.symbols) for each in self._studio.offers.values())
        with gr.Row(elem_classes="hebm-condition"):
            return [_target(offer, i, tab, weighed) for i in range(most)]


def _target(offer: Offer, index: int, tab: str, weighed: bool) -> Target:
    """The `index`-th variable's dropdown, and its weight."""
    with gr.Column(min_width=130, visible=index < len(offer.symbols)) as box:
        value = gr.Dropdown(
            **target_values(offer, index),
            elem_id=f"hebm-{tab}-target-{index}",
            filterable=False,
            min_width=100,
        )
        if not weighed:
            return Target(box, value)
        weight = gr.Slider(
            0,
            MOST_WEIGHT,
            2,
            step=0.5,
            label="Weight",
            visible=False,
            min_width=100,
            elem_id=f"hebm-weight-{index}",
        )
        value.change(lambda target: gr.update(visible=bool(target)), value, weight, **QUICK)
    return Target(box, value, weight)


def target_values(offer: Offer, index: int) -> dict[str, Any]:
    """Properties of the dropdown of a model's `index`-th variable."""
    if index >= len(offer.symbols):
        return {"choices": [("any", "")], "value": "", "label": "-"}
    name, values = list(offer.symbols.items())[index]
    choices = [("any", ""), *((value, value) for value in values)]
    if len(values) > 2:  # of two, one not is the other
        choices += [(f"not {value}", f"~{value}") for value in values]
    return {"choices": choices, "value": "", "label": view.readable(name)}


def _seeds(name: str, value: str, label: str, info: str) -> tuple[gr.Textbox, gr.Button]:
    """A box of seeds, and a die for one that nobody thought of."""
    with gr.Row(elem_classes="hebm-seeds"):
        box = gr.Textbox(
            value, label=label, info=info, max_lines=1, max_length=200, elem_id=name, min_width=120
        )
        die = gr.Button("Random", scale=0, min_width=100, elem_id=f"{name}-random")
    die.click(None, box, box, js=_DICE)
    return box, die
