"""Model cards: YAML front matter, what the model is, its measured figures."""

from collections.abc import Mapping
from typing import Any

from hebm_sample.config import ModelConfig, NvaeConfig

__all__ = ["model_card"]


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
    config: ModelConfig, *, licence: str, figures: Mapping[str, Any], notes: str = ""
) -> str:
    """The text of a model folder's README.md.

    Arguments:
        licence: Of the weights, in words.
        figures: Name to measured value.
        notes: Markdown on data, training and limits.
    """
    generator, prior = config.generator, config.prior
    shapes = ", ".join("x".join(map(str, s)) for s in generator.latent_shapes)
    levels = "none" if prior is None else ", ".join(f"{s:g}" for s in prior.levels)
    table = prior.symbols if prior is not None else ()
    symbols = "; ".join(f"{s.name} ({', '.join(s.values)})" for s in table) or "none"
    return f"""---
license: other
license_name: {licence.split(":")[0].split(",")[0].strip().lower().replace(" ", "-")}
library_name: hebm-sample
pipeline_tag: unconditional-image-generation
tags: [energy-based-model, hierarchical-vae, arxiv:2405.13910]
---

# {config.name} ({generator.image_size}x{generator.image_size})

A hierarchical latent-variable generator with a diffusion-learned energy-based prior, for
[hebm_sample](https://arxiv.org/abs/2405.13910): `hebm-sample --dataset FOLDER`.

- Latent groups, top to bottom: {shapes} ({generator.latent_dimensions} dimensions).
{_origin(config)}- Noise levels of the prior (cum_sigma): {levels}.
- Symbols: {symbols}.
- Sampler: {config.sampling.sampler}, {config.sampling.steps} gradients.
{_training(config)}- Licence of these weights: {licence}.

## Figures

{_figures_table(figures)}
{notes}"""
