"""Model cards: YAML front matter, what the model is, how it is used, its measured figures."""

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any

from hebm_sample.config import ModelConfig, NvaeConfig

__all__ = [
    "CARD_IMAGES",
    "NOT_PICKED",
    "SAMPLES_NAME",
    "card_for",
    "licence_identifier",
    "model_card",
]

PLACE = "."  # the model, where its card lies
HERE = "In this folder:\n\n"
_PLACES = (PLACE, "FOLDER")  # also what earlier cards say
SAMPLES_NAME = "samples.png"
CARD_IMAGES = 16
NOT_PICKED = f"Samples of seeds 0 to {CARD_IMAGES - 1}, not picked"
PAPER = "https://arxiv.org/abs/2405.13910"

# Licences that data and weights come under, by their SPDX identifiers, which the Hub writes in
# lower case.
IDENTIFIERS = (
    *("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Unlicense", "WTFPL"),
    *("CC0-1.0", "CC-BY-2.0", "CC-BY-2.5", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0"),
    *("CC-BY-SA-4.0", "CC-BY-NC-2.0", "CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-ND-4.0"),
    *("CC-BY-NC-ND-3.0", "CC-BY-NC-ND-4.0", "CC-BY-NC-SA-2.0", "CC-BY-NC-SA-3.0"),
    *("CC-BY-NC-SA-4.0", "GPL-2.0", "GPL-3.0", "LGPL-2.1", "LGPL-3.0", "AGPL-3.0", "MPL-2.0"),
    *("EPL-2.0", "ODbL-1.0", "ODC-By-1.0", "PDDL-1.0"),
)
_HUB = {"odbl-1.0": "odbl", "odc-by-1.0": "odc-by", "pddl-1.0": "pddl"}  # as the Hub has them


def licence_identifier(licence: str) -> str | None:
    """The SPDX identifier that a licence in words begins with, or None.

    >>> licence_identifier("CC BY-NC 4.0: as the data"), licence_identifier("ask me")
    ('CC-BY-NC-4.0', None)
    """
    stated = re.split(r"[:,;(]", licence)[0]
    known = {_folded(name): name for name in IDENTIFIERS}
    return known.get(_folded(re.sub(r"(?i)\b(the|licen[cs]e)\b", "", stated)))


def _folded(text: str) -> str:
    return re.sub(r"[\s_-]+", "", text).casefold()


def _licence_fields(licence: str) -> str:
    """Of the front matter: an identifier where there is one, else the licence's first words, of
    the letters that the Hub takes; in quotes, without which YAML reads more than words.
    """
    found = licence_identifier(licence)
    if found is not None:
        return f'license: "{_HUB.get(found.lower(), found.lower())}"'
    words = re.split(r"[:,]", licence.strip())[0].lower()
    name = re.sub(r"[^a-z0-9.]+", "-", words).strip("-.")[:64] or "own-terms"
    return f'license: "other"\nlicense_name: "{name}"'


def _package() -> str:
    """The package, linked to its home where its metadata name one."""
    try:
        urls = metadata("hebm-sample").get_all("Project-URL") or []
    except PackageNotFoundError:
        urls = []
    pages = [url.partition(",")[2].strip() for url in urls]
    return f"[hebm_sample]({pages[0]})" if pages else "hebm_sample"


def card_for(card: str, name: str) -> str:
    """A card whose program and commands name the model, wherever the card lies.

    Arguments:
        name: A repository, or a name that the package knows.
    """
    for place in _PLACES:
        for words in ("--dataset {}", 'from_pretrained("{}")'):
            text = re.escape(words.format(place))
            card = re.sub(rf"{text}(?=[ `\n]|$)", words.format(name), card, flags=re.MULTILINE)
    return card.replace(HERE, "", 1)


def _command(config: ModelConfig) -> str:
    """What samples from it in a shell."""
    plain = "" if config.prior is not None else " --gaussian-prior"
    return f"hebm-sample --dataset {PLACE}{plain}"


def _use(config: ModelConfig) -> str:
    """Commands and a program."""
    prior = config.prior
    table = prior.symbols if prior is not None else ()
    asked = f", symbols={{{table[0].name!r}: {table[0].values[-1]!r}}}" if table else ""
    asked += "" if prior is not None else ', prior="gaussian"'
    return f"""{HERE}```python
from hebm_sample import Pipeline

pipe = Pipeline.from_pretrained("{PLACE}")
samples = pipe(16, seed=0{asked.replace("'", '"')})
samples.grid().save("sixteen.png")
```

or `{_command(config)} -n 16` in a shell."""


def _figures_table(figures: Mapping[str, Any]) -> str:
    rows = [f"| {name.replace('_', ' ')} | {value} |" for name, value in figures.items()]
    if not rows:
        return "No figures were measured."
    return "\n".join(["| figure | value |", "| --- | --- |", *rows])


def _training(config: ModelConfig) -> str:
    """A line per run that is known."""
    return "".join(f"- Trained: {record}.\n" for record in config.training)


def _origin(config: ModelConfig) -> str:
    if not isinstance(config.generator, NvaeConfig):
        return ""
    return "- Generator and encoder: an imported [NVAE](https://arxiv.org/abs/2007.03898).\n"


def model_card(
    config: ModelConfig,
    *,
    licence: str,
    figures: Mapping[str, Any],
    notes: str = "",
    samples: str | None = None,
) -> str:
    """The text of a model folder's README.md.

    Arguments:
        licence: Of the weights, in words.
        figures: Name to measured value.
        notes: Markdown on data, training and limits.
        samples: What the image `samples.png` beside the card shows; None where there is none.
    """
    generator, prior = config.generator, config.prior
    shapes = ", ".join("x".join(map(str, s)) for s in generator.latent_shapes)
    levels = "none" if prior is None else ", ".join(f"{s:g}" for s in prior.levels)
    table = prior.symbols if prior is not None else ()
    symbols = "; ".join(f"{s.name} ({', '.join(s.values)})" for s in table) or "none"
    licence = " ".join(licence.split())
    image = "" if samples is None else f"![{samples}]({SAMPLES_NAME})\n\n*{samples}.*\n\n"
    return f"""---
{_licence_fields(licence)}
library_name: hebm-sample
pipeline_tag: unconditional-image-generation
tags: [energy-based-model, hierarchical-vae, arxiv:2405.13910]
---

# {config.name} ({generator.image_size}x{generator.image_size})

A hierarchical latent-variable generator with a diffusion-learned energy-based prior
([arXiv 2405.13910]({PAPER})), for the Python package {_package()}:
`{_command(config)}`.

{image}## Use

{_use(config)}

## The model

- Latent groups, top to bottom: {shapes} ({generator.latent_dimensions} dimensions).
{_origin(config)}- Noise levels of the prior (cum_sigma): {levels}.
- Symbols: {symbols}.
- Sampler: {config.sampling.words}.
{_training(config)}- Licence of these weights: {licence}.

## Figures

{_figures_table(figures)}
{notes}"""
