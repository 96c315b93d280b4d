"""What the page shows, as HTML: images, energies, messages, files. No word of a visitor reaches
it unescaped.
"""

import base64
import io
import zipfile
from collections.abc import Sequence
from html import escape

from hebm_sample.demo.images import DemoImage
from hebm_sample.demo.photos import MAX_UPLOAD_BYTES
from hebm_sample.demo.steps import PasteBack, file_name
from hebm_sample.demo.studio import Offer

__all__ = [
    "HEADER",
    "archive",
    "energy_chart",
    "facts",
    "model_note",
    "prediction_chart",
    "readable",
    "stage",
    "status",
    "upload_box",
]

HEADER = (
    '<header class="hebm-head"><h1>hebm_sample</h1>'
    "<p>Draw images from noise, keep their broad strokes and vary the rest, "
    "change what they show. One seed is one image.</p></header>"
)

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


def upload_box(samples: Sequence[bytes]) -> str:
    """Where a visitor gives an image: a field to drop it on, and drawn ones to click."""
    limit = MAX_UPLOAD_BYTES >> 20
    shown = "".join(
        f'<button type="button" data-sample="{i}" aria-label="Drawn image {i + 1}">'
        f'<img src="{_data(png)}" alt=""></button>'
        for i, png in enumerate(samples)
    )
    row = f'<div class="hebm-samples"><p>Or a drawing of ours:</p>{shown}</div>' if samples else ""
    return (
        '<label class="hebm-drop">Choose or drop an image'
        f"<small>PNG, JPEG, WebP and others, up to {limit} MB</small>"
        f'<input type="file" accept="image/*"></label>{row}'
    )


def stage(images: Sequence[DemoImage], chosen: int) -> str:
    """All images, one of them large: with a canvas for the mask, if something can begin from it.

    Arguments:
        images: At least one.
        chosen: Which is large.
    """
    big = images[chosen]
    thumbs = "".join(_thumb(p, i, i == chosen) for i, p in enumerate(images))
    strip = f'<div class="hebm-thumbs">{thumbs}</div>' if len(images) > 1 else ""
    canvas = ""
    if big.origin is not None and not isinstance(big.origin.step, PasteBack):
        side = big.image.width
        canvas = f'<canvas width="{side}" height="{side}"></canvas>'
    return (
        f'<div class="hebm-stage"><figure class="hebm-big">'
        f'<div><img src="{_source(big)}" alt="{escape(big.caption)}">{canvas}</div>'
        f"<figcaption>{escape(big.caption)}</figcaption></figure>{strip}</div>"
    )


def facts(images: Sequence[DemoImage], chosen: int, resolutions: Sequence[int]) -> str:
    """Of the chosen image: files to save, its energies, what the model predicts.

    Arguments:
        resolutions: Side of each layer's maps.
    """
    big = images[chosen]
    parts = "" if big.origin is None else _downloads(images, big)
    if big.energies:
        parts += _FOLD + energy_chart(big.energies, resolutions)
    if big.log_density is not None:
        text = (
            f"Log density {big.log_density:.1f}, to compare with others of this model; smooth "
            "images of any kind have a high one"
        )
        parts += f'<p class="hebm-note">{text}</p>'
    if big.predictions:
        parts += prediction_chart(big.predictions)
    return f'<div class="hebm-facts">{parts}</div>' if parts else ""


def _source(image: DemoImage) -> str:
    return _data(image.png)


def _data(png: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(png).decode()}"


def _thumb(image: DemoImage, index: int, chosen: bool) -> str:
    caption = escape(image.caption)
    return (
        f'<button type="button" data-pick="{index}" aria-pressed="{str(chosen).lower()}">'
        f'<img src="{_source(image)}" alt=""><span>{caption}</span></button>'
    )


def _downloads(images: Sequence[DemoImage], big: DemoImage) -> str:
    """Links to the image's file, to those that its lines read, and to all that is shown."""
    assert big.origin is not None
    width, height = big.image.size
    links = _link(file_name(big.origin), big.png, f"Save {width}×{height} PNG")
    for name, data in big.files:
        links += _link(name, data, f"Save {name}")
    if len(images) > 1 and all(image.finished for image in images):
        count = f"Save all {len(images)} as a ZIP"
        links += _link("images.zip", archive(images), count, "application/zip", "hebm-all")
    return links


def _link(
    name: str, data: bytes, text: str, kind: str = "image/png", more: str = "hebm-one"
) -> str:
    return (
        f'<a class="hebm-download {more}" download="{escape(name)}" href="{_data(data, kind)}">'
        f"{escape(text)}</a>"
    )


def archive(images: Sequence[DemoImage]) -> bytes:
    """A ZIP of images, each by the name it is saved by, and of the files that their lines read.
    The same images give the same bytes.
    """
    files: dict[str, bytes] = {}
    for image in images:
        if image.origin is not None:
            _add(files, file_name(image.origin), image.png)
        for name, data in image.files:
            _add(files, name, data)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as packed:
        for name, data in files.items():
            packed.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    return content.getvalue()


def _add(files: dict[str, bytes], name: str, data: bytes) -> None:
    """Under a name that nothing else has; the same once."""
    stem, dot, ending = name.rpartition(".")
    number = 1
    while files.setdefault(name, data) != data:
        number += 1
        name = f"{stem}-{number}{dot}{ending}"


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
        "<small>low: likelier under the prior than under N(0, I)</small></caption>"
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
