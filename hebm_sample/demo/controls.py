"""The parts on the left: the visitor's own image, and a tab for each thing to do. The main button
is the first part of every tab, so it stays where it is from tab to tab.
"""

from dataclasses import dataclass
from typing import Any, get_args

import gradio as gr

from hebm_sample.config import EDIT_GUIDANCE, MAX_GUIDANCE, SamplerName
from hebm_sample.demo import client, view
from hebm_sample.demo.images import MAX_IMAGES
from hebm_sample.demo.photos import aligns
from hebm_sample.demo.studio import Offer, Studio, positive

__all__ = ["QUICK", "Controls", "Target", "target_values"]

MOST_WEIGHT = 16  # of the slider: what samples take

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


def _main(label: str) -> gr.Button:
    """The button of a tab."""
    return gr.Button(label, variant="primary", elem_id=f"hebm-{label.lower()}")


def _cut(offer: Offer, label: str, info: str, name: str, whole: bool) -> gr.Slider:
    """How many of the top layers."""
    most = offer.groups - (not whole)
    return gr.Slider(
        0, most, offer.groups // 2, step=1, label=label, info=info, elem_id=f"hebm-{name}"
    )


class Controls:
    """All of them. Made inside the context of the page."""

    def __init__(self, studio: Studio, first: str, samples: list[bytes]) -> None:
        self._studio, offer = studio, studio.offers[first]
        with gr.Accordion("Your own image", open=False, elem_id="hebm-own"):
            self.upload: Any = gr.HTML(
                view.upload_box(samples),
                js_on_load=client.GIVE,
                elem_id="hebm-upload",
                apply_default_css=False,
            )
            self.align = gr.Checkbox(
                True,
                label="Align the face",
                info="Turned and cropped as the model's images are; it can be put back.",
                visible=aligns(offer.config),
                elem_id="hebm-align",
            )
        with gr.Tabs(overflow_behavior="wrap") as self.tabs:
            self._tabs(offer)

    def _tabs(self, offer: Offer) -> None:
        parts = {
            "Draw": self._drawing,
            "Vary": self._varying,
            "Edit": self._editing,
            "Inpaint": self._inpainting,
            "Mix": self._mixing,
            "Interpolate": self._interpolating,
        }
        for name, make in parts.items():
            with gr.Tab(name, id=name.lower(), elem_id=f"hebm-tab-{name.lower()}"):
                make(offer)

    def _drawing(self, offer: Offer) -> None:
        self.draw = _main("Draw")
        self.seeds = _seeds("hebm-seeds", "7", "Seeds", f"Up to {MAX_IMAGES}: 7 or 0-8")
        self.targets = self._targets(offer, "draw", weighed=True)
        with gr.Accordion("Advanced", open=False, elem_id="hebm-advanced"):
            self.temperature = gr.Slider(
                0,
                2,
                offer.temperature,
                step=0.05,
                label="Temperature",
                info="Below 1: calmer, more alike. It starts at the model's own.",
                elem_id="hebm-temperature",
            )
            self.sampler = gr.Dropdown(
                [("the model's", ""), *get_args(SamplerName)],
                value="",
                label="Sampler",
                filterable=False,
            )
            self.steps = _steps("model", "hebm-steps")

    def _varying(self, offer: Offer) -> None:
        self.vary = _main("Vary")
        gr.Markdown("Keeps the top layers of the chosen image and samples those below anew.")
        info = "Few: another image. Many: other details."
        self.keep = _cut(offer, "Layers kept, from the top", info, "keep", whole=False)
        self.vary_seeds = _seeds(
            "hebm-vary-seeds", "1-8", "Seeds of the variations", "One variation per seed"
        )

    def _editing(self, offer: Offer) -> None:
        self.edit = _main("Edit")
        gr.Markdown("Changes the chosen image: a sample, or your own.")
        self.edit_targets = self._targets(offer, "edit", weighed=False)
        self.strength = _strength(0.77, "How far up into the noise: less changes less.", "")
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
        self.reconstruct = gr.Button("Reconstruct only", elem_id="hebm-reconstruct")

    def _inpainting(self, _offer: Offer) -> None:
        self.inpaint = _main("Inpaint")
        gr.Markdown("Paint on the large image; what is painted over is filled in.")
        with gr.Row(equal_height=True):
            # No listener reads these two: the brush in the browser does.
            self.brush = gr.Slider(
                2,
                50,
                16,
                step=1,
                label="Brush",
                elem_id="hebm-brush",
                min_width=150,
                interactive=True,
            )
            with gr.Column(min_width=120, scale=0):
                self.erase = gr.Checkbox(
                    False, label="Erase", elem_id="hebm-erase", interactive=True
                )
                self.clear = gr.Button("Clear", elem_id="hebm-clear", size="sm")
        self.mask = gr.Textbox("", visible=False)
        self.inpaint_seeds = _seeds(
            "hebm-inpaint-seeds", "0-2", "Seeds", f"One filling per seed, up to {MAX_IMAGES - 1}"
        )
        self.inpaint_strength = _strength(
            0.9, "Less keeps more of the colours around.", "inpaint-"
        )
        with gr.Accordion("Advanced", open=False):
            self.inpaint_steps = _steps("method", "hebm-inpaint-steps")

    def _mixing(self, offer: Offer) -> None:
        self.mix = _main("Mix")
        gr.Markdown("The top layers of one image with those below of another.")
        self.coarse, self.fine = _pair("mix", "Top layers of", "Layers below of", ("7", "8"))
        info = "Layers from the top that are the first one's."
        self.cut = _cut(offer, "Layers of the first", info, "cut", whole=True)

    def _interpolating(self, _offer: Offer) -> None:
        self.interpolate = _main("Interpolate")
        gr.Markdown("On the way from one image to another, both as the model reads them.")
        self.first, self.second = _pair("way", "From", "To", ("7", "8"))
        self.frames = gr.Slider(
            3, MAX_IMAGES, 5, step=1, label="Images, with both ends", elem_id="hebm-frames"
        )

    def _targets(self, offer: Offer, tab: str, weighed: bool) -> list[Target]:
        """As many dropdowns as the model that has most needs; the others are hidden."""
        most = max(len(each.symbols) for each in self._studio.offers.values())
        with gr.Row(elem_classes="hebm-condition"):
            return [_target(offer, i, tab, weighed) for i in range(most)]


def _strength(value: float, info: str, name: str) -> gr.Slider:
    return gr.Slider(
        0.05, 1, value, step=0.01, label="Strength", info=info, elem_id=f"hebm-{name}strength"
    )


def _pair(name: str, first: str, second: str, values: tuple[str, str]) -> tuple[Any, Any]:
    """Two boxes of a seed each."""
    with gr.Row():
        boxes = [
            gr.Textbox(
                value,
                label=label,
                info="A seed; empty: the chosen image",
                max_lines=1,
                max_length=20,
                elem_id=f"hebm-{name}-{i}",
                min_width=130,
            )
            for i, (label, value) in enumerate(zip((first, second), values, strict=True), start=1)
        ]
    gr.Markdown("Seeds are sampled as the tab Draw says.")
    return boxes[0], boxes[1]


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
    """Properties of the dropdown of a model's `index`-th variable. `No_Beard` is asked for as a
    beard, so that nobody has to say "no" to it twice.
    """
    if index >= len(offer.symbols):
        return {"choices": [("any", "")], "value": "", "label": "-"}
    name, values = list(offer.symbols.items())[index]
    denied = positive(name, values)
    label = view.readable(denied or name) + (" (weak)" if name in offer.weak else "")
    if denied is not None:
        choices = [("any", ""), ("no", "yes"), ("yes", "no")]
        return {"choices": choices, "value": "", "label": label}
    choices = [("any", ""), *((value, value) for value in values)]
    if len(values) > 2:  # of two, one not is the other
        choices += [(f"not {value}", f"~{value}") for value in values]
    return {"choices": choices, "value": "", "label": label}


def _seeds(name: str, value: str, label: str, info: str) -> gr.Textbox:
    """A box of seeds, and a die for one that nobody thought of."""
    with gr.Row(elem_classes="hebm-seeds"):
        box = gr.Textbox(
            value, label=label, info=info, max_lines=1, max_length=200, elem_id=name, min_width=120
        )
        die = gr.Button("Random", scale=0, min_width=100, elem_id=f"{name}-random")
    die.click(None, box, box, js=client.DICE)
    return box
