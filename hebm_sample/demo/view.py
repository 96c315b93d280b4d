"""What the page shows, as HTML and CSS: images, energies, messages. No word of a visitor reaches
it unescaped.
"""

import base64
from collections.abc import Sequence
from html import escape

from hebm_sample.demo.actions import DemoImage
from hebm_sample.demo.recipes import file_name
from hebm_sample.demo.studio import Offer

__all__ = [
    "CSS",
    "HEADER",
    "PICK",
    "energy_chart",
    "model_note",
    "prediction_chart",
    "readable",
    "stage",
    "status",
]

HEADER = (
    '<header class="hebm-head"><h1>hebm_sample</h1>'
    "<p>Draw images from noise, keep their broad strokes and vary the rest, "
    "change what they show. One seed is one image.</p></header>"
)

# Runs once in the browser: a click on a small image tells which one it was.
PICK = """
element.addEventListener('click', (event) => {
    const thumb = event.target.closest('[data-pick]');
    if (thumb) trigger('select', {index: Number(thumb.dataset.pick)});
});
"""


# On a telephone the charts are folded away, so that the controls are near the image.
_FOLD = (
    '<input type="checkbox" id="hebm-more" class="hebm-fold">'
    '<label for="hebm-more" class="hebm-fold">Energies, and what the model predicts</label>'
)


def readable(name: str) -> str:
    """`Blond_Hair` as a label."""
    return name.replace("_", " ").capitalize()


def status(text: str, error: bool = False) -> str:
    """The line above the images."""
    role = "alert" if error else "status"
    kind = "hebm-error" if error else "hebm-fine"
    return f'<p class="hebm-status {kind}" role="{role}">{escape(text)}</p>'


def model_note(offer: Offer) -> str:
    """What there is to know about a model before it samples."""
    side, count = offer.config.generator.image_size, len(offer.symbols)
    things = "no attributes to set"
    if count:
        things = f"{count} attribute{'s' if count > 1 else ''} to set"
    text = f"{side}×{side} pixels, {offer.groups} layers, {things}. Licence: {offer.licence}."
    return f'<p class="hebm-note">{escape(text)}</p>'


def stage(images: Sequence[DemoImage], chosen: int, resolutions: Sequence[int]) -> str:
    """All images, one of them large, with its energies and its file.

    Arguments:
        images: At least one.
        chosen: Which is large.
        resolutions: Side of each layer's maps.
    """
    big = images[chosen]
    facts = "" if big.origin is None else _download(big)
    if big.energies:
        facts += _FOLD + energy_chart(big.energies, resolutions)
    if big.log_density is not None:
        text = f"Log density {big.log_density:.1f}, high for images like those it learned from"
        facts += f'<p class="hebm-note">{text}</p>'
    if big.predictions:
        facts += prediction_chart(big.predictions)
    thumbs = "".join(_thumb(p, i, i == chosen) for i, p in enumerate(images))
    strip = f'<div class="hebm-thumbs">{thumbs}</div>' if len(images) > 1 else ""
    return (
        f'<div class="hebm-stage{"" if facts else " hebm-alone"}">'
        f'<figure class="hebm-big"><img src="{_source(big)}" alt="{escape(big.caption)}">'
        f"<figcaption>{escape(big.caption)}</figcaption></figure>"
        f'{strip}<div class="hebm-facts">{facts}</div></div>'
    )


def _source(image: DemoImage) -> str:
    return "data:image/png;base64," + base64.b64encode(image.png).decode()


def _thumb(image: DemoImage, index: int, chosen: bool) -> str:
    caption = escape(image.caption)
    return (
        f'<button type="button" data-pick="{index}" aria-pressed="{str(chosen).lower()}">'
        f'<img src="{_source(image)}" alt=""><span>{caption}</span></button>'
    )


def _download(image: DemoImage) -> str:
    assert image.origin is not None
    name = escape(file_name(image.origin))
    size = image.image.size
    return (
        f'<a class="hebm-download" download="{name}" href="{_source(image)}">'
        f"Save {size[0]}×{size[1]} PNG</a>"
    )


def energy_chart(energies: Sequence[float], resolutions: Sequence[int]) -> str:
    """-F_{i} as bars from a common zero: a row a layer, the top one first."""
    low, high = min(0.0, *energies), max(0.0, *energies)
    span = (high - low) or 1.0
    rows = []
    for i, (energy, side) in enumerate(zip(energies, resolutions, strict=True)):
        left, width = (min(energy, 0.0) - low) / span, abs(energy) / span
        kind = "hebm-low" if energy < 0 else "hebm-high"
        rows.append(
            f"<tr><th scope=row>{i + 1}<small> {side}×{side}</small></th>"
            f'<td class="hebm-track"><i class="{kind}" '
            f'style="left:{100 * left:.1f}%;width:{100 * width:.1f}%"></i>'
            f'<b style="left:{-100 * low / span:.1f}%"></b></td><td>{energy:.1f}</td></tr>'
        )
    return (
        '<table class="hebm-chart hebm-energies"><caption>Energy by layer, coarse to fine'
        "<small>low: like the images it learned from</small></caption>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def prediction_chart(predictions: Sequence[tuple[str, float]]) -> str:
    """p of each symbol as a bar from 0 to 1."""
    rows = (
        f"<tr><th scope=row>{escape(readable(name))}</th>"
        f'<td class="hebm-track"><i class="hebm-low" style="left:0;width:{100 * p:.1f}%"></i></td>'
        f"<td>{p:.2f}</td></tr>"
        for name, p in predictions
    )
    return (
        '<table class="hebm-chart hebm-predictions"><caption>What the model predicts'
        "<small>its own probabilities</small></caption>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


CSS = """
.gradio-container { width: 100%; max-width: 1240px !important; margin: 0 auto !important; }
#hebm-images, #hebm-status, :is(#hebm-images, #hebm-status) > div { padding: 0 !important; }
#hebm-line { align-items: center; }
.hebm-condition { display: grid !important; gap: 8px !important; align-items: start;
    grid-template-columns: repeat(2, minmax(0, 1fr)); }
.hebm-condition > * { min-width: 0 !important; }
.hebm-seeds { align-items: flex-end !important; }
.hebm-seeds button { height: 42px; margin-bottom: 10px; }
.hebm-head h1 { font-size: 1.5rem; font-weight: 650; margin: 0; letter-spacing: -0.01em; }
.hebm-head p { margin: .15rem 0 0; color: var(--body-text-color-subdued); }
.hebm-note { margin: 0; font-size: .8rem; line-height: 1.35;
    color: var(--body-text-color-subdued); }
.hebm-status { margin: 0; padding: .5rem .75rem; border-radius: 8px; min-height: 2.4rem;
    overflow-wrap: anywhere; background: var(--background-fill-secondary); }
.hebm-error { background: #b3261e; color: #fff; }
.hebm-stage { display: grid; gap: 1rem; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr);
    grid-template-rows: auto 1fr; align-items: start; }
.hebm-alone { grid-template-columns: minmax(0, 1fr); }
.hebm-alone .hebm-facts { display: none; }
.hebm-big { margin: 0; }
.hebm-big img { width: 100%; max-width: 512px; aspect-ratio: 1; display: block; margin: 0 auto;
    border-radius: 12px; }
.hebm-big figcaption { text-align: center; font-size: .85rem; margin-top: .4rem;
    color: var(--body-text-color-subdued); }
.hebm-facts { display: grid; gap: .9rem; grid-column: 2; grid-row: 1 / span 2; }
.hebm-fold { display: none !important; }
.hebm-chart { width: 100%; border-collapse: collapse; font-size: .85rem; table-layout: fixed; }
.hebm-chart caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
.hebm-chart caption small { display: block; font-weight: 400;
    color: var(--body-text-color-subdued); }
.hebm-chart th { text-align: left; font-weight: 500; width: 4.6em; white-space: nowrap; }
.hebm-predictions th { width: 7.6em; overflow: hidden; text-overflow: ellipsis; }
.hebm-chart th small { color: var(--body-text-color-subdued); font-weight: 400; }
.hebm-chart, .hebm-chart :is(tr, td, th) { border: 0 !important; }
.hebm-chart td, .hebm-chart th { padding: 3px 0 !important; }
.hebm-chart td:last-child { text-align: right; width: 3.6em; font-variant-numeric: tabular-nums; }
.hebm-track { position: relative; height: 1.3em; }
.hebm-track i { position: absolute; top: 22%; height: 56%; border-radius: 3px; min-width: 1px; }
.hebm-track b { position: absolute; top: 0; bottom: 0; width: 1px;
    background: var(--body-text-color-subdued); opacity: .5; }
.hebm-low { background: #2f7d6d; } .hebm-high { background: #d0803a; }
.hebm-download { display: block; text-align: center; padding: .55rem; border-radius: 8px;
    text-decoration: none !important; font-weight: 600; color: var(--body-text-color) !important;
    border: 1px solid var(--border-color-primary); }
.hebm-download:hover { background: var(--background-fill-secondary); }
.hebm-thumbs { grid-column: 1; display: grid; gap: .5rem;
    grid-template-columns: repeat(auto-fill, minmax(80px, 1fr)); }
.hebm-thumbs button { padding: 0 0 .2rem; border: 2px solid transparent; border-radius: 10px;
    background: none; cursor: pointer; color: inherit; font-size: .72rem; min-width: 0; }
.hebm-thumbs button[aria-pressed=true] { border-color: var(--color-accent); }
.hebm-thumbs button:focus-visible { outline: 2px solid var(--color-accent); }
.hebm-thumbs img { width: 100%; aspect-ratio: 1; display: block; border-radius: 8px; }
.hebm-thumbs span { display: block; overflow: hidden; text-overflow: ellipsis;
    white-space: nowrap; }
@media (max-width: 760px) {
    #hebm-stage { order: -1; }
    .hebm-stage { grid-template-columns: minmax(0, 1fr); }
    .hebm-big img { max-width: 320px; }
    .hebm-facts { grid-column: 1; grid-row: auto; }
    label.hebm-fold { display: block !important; text-align: center; padding: .5rem;
        cursor: pointer; border-radius: 8px; border: 1px solid var(--border-color-primary); }
    input.hebm-fold { display: block !important; position: absolute; opacity: 0; }
    input.hebm-fold:focus-visible + label { outline: 2px solid var(--color-accent); }
    input.hebm-fold:not(:checked) ~ .hebm-chart { display: none; }
}
"""
