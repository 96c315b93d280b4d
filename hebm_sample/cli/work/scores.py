"""What a model says about images, as rows and as a table: energies, symbol probabilities."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hebm_sample.cli.list_models import aligned

if TYPE_CHECKING:
    from hebm_sample.pipeline.alignment import Framed
    from hebm_sample.pipeline.pipeline import Pipeline

__all__ = ["score_table", "scores"]


def scores(
    pipe: "Pipeline", images: "Framed", groups: Sequence[int] | None, batch: int
) -> list[dict[str, Any]]:
    """A row per image: -F and log p of the groups together, -F of each alone, p of each symbol's
    values, and the p-value among held-out images, None for a model without a calibration.
    """
    shown = range(len(pipe.config.generator.latent_shapes)) if groups is None else groups
    u = pipe.encode(images, batch_size=batch)
    energies = pipe.energy(latents=u, groups=groups, batch_size=batch).tolist()
    single = [pipe.energy(latents=u, groups=i, batch_size=batch).tolist() for i in shown]
    found = pipe.classify(latents=u, groups=groups, batch_size=batch) if pipe.symbols else {}
    densities = pipe.log_density(latents=u, groups=groups, batch_size=batch).tolist()
    p_values: list[float | None] = [None] * len(images)
    if pipe.calibration is not None:
        p = pipe.score(images, batch_size=batch).p_value
        assert p is not None
        p_values = p.tolist()
    return [
        {
            "energy": energies[i],
            "log_density": densities[i],
            "p_value": p_values[i],
            "groups": {str(g): column[i] for g, column in zip(shown, single, strict=True)},
            "symbols": {
                name: dict(zip(pipe.symbols[name], p[i].tolist(), strict=True))
                for name, p in found.items()
            },
        }
        for i in range(len(images))
    ]


def score_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line per image: log density, p-value if there is one, energies, p(yes) of what is yes or
    no, else the likeliest value.
    """
    calibrated = rows[0]["p_value"] is not None
    header = ["image", *(["p-value"] if calibrated else []), "log density", "energy"]
    header += [f"group {g}" for g in rows[0]["groups"]]
    header += [f"{n}=yes" if set(p) == {"no", "yes"} else n for n, p in _symbols(rows[0])]
    table = [header]
    for score in rows:
        values = (score["log_density"], score["energy"], *score["groups"].values())
        numbers = [f"{score['p_value']:.3g}"] if calibrated else []
        numbers += [f"{value:.1f}" for value in values]
        table.append([score["picture"], *numbers, *(_likely(p) for _, p in _symbols(score))])
    return aligned(table)


def _symbols(score: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    return list(score["symbols"].items())


def _likely(probabilities: dict[str, float]) -> str:
    if set(probabilities) == {"no", "yes"}:
        return f"{probabilities['yes']:.2f}"
    best = max(probabilities, key=probabilities.__getitem__)
    return f"{best} {probabilities[best]:.2f}"
