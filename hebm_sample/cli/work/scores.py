"""What a model says about images, as rows and as a table: energies, symbol probabilities."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hebm_sample.cli.list_models import aligned
from hebm_sample.io.files import printable

if TYPE_CHECKING:
    from hebm_sample.pipeline.alignment import Framed
    from hebm_sample.pipeline.pipeline import Pipeline

__all__ = ["score_table", "scores"]


def scores(
    pipe: "Pipeline", images: "Framed", groups: Sequence[int] | None, batch: int
) -> list[dict[str, Any]]:
    """A row per image: -F and log p of the groups together, -F of each alone, p of each symbol's
    values, and the p-value among held-out images, None for a model without a calibration of its
    weights. The numbers are `pipe.score`'s, of the groups.
    """
    from hebm_sample.pipeline.identity import own_calibration
    from hebm_sample.pipeline.scores import group_scores

    found = group_scores(pipe.model, images, groups, batch)
    p_values: list[float | None] = [None] * len(images)
    if own_calibration(pipe.model)[0] is not None:
        p = pipe.score(images, batch_size=batch).p_value
        assert p is not None
        p_values = p.tolist()
    return [
        {
            "energy": float(found.energy[i]),
            "log_density": float(found.log_density[i]),
            "p_value": p_values[i],
            "groups": {str(g): float(column[i]) for g, column in found.energies.items()},
            "symbols": {
                name: dict(zip(pipe.symbols[name], p[i].tolist(), strict=True))
                for name, p in found.symbols.items()
            },
        }
        for i in range(len(images))
    ]


def score_table(rows: Sequence[dict[str, Any]], held_out: int) -> str:
    """A line per image: log density, p-value if there is one, energies, p(yes) of what is yes or
    no, else the likeliest value.

    Arguments:
        held_out: How many images the p-values count.
    """
    calibrated = rows[0]["p_value"] is not None
    header = ["image", *(["p-value"] if calibrated else []), "log density", "energy"]
    header += [f"group {g}" for g in rows[0]["groups"]]
    header += [f"{n}=yes" if set(p) == {"no", "yes"} else n for n, p in _symbols(rows[0])]
    table = [header]
    for score in rows:
        values = (score["log_density"], score["energy"], *score["groups"].values())
        numbers = [_p_value(score["p_value"], held_out)] if calibrated else []
        numbers += [f"{value:.1f}" for value in values]
        table.append(
            [printable(score["picture"]), *numbers, *(_likely(p) for _, p in _symbols(score))]
        )
    return aligned(table)


def _p_value(p: float, held_out: int) -> str:
    from hebm_sample.metrics.typicality import share_in_words

    return f"{p:.3g} ({share_in_words(p, held_out)})"


def _symbols(score: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    return list(score["symbols"].items())


def _likely(probabilities: dict[str, float]) -> str:
    if set(probabilities) == {"no", "yes"}:
        return f"{probabilities['yes']:.2f}"
    best = max(probabilities, key=probabilities.__getitem__)
    return f"{best} {probabilities[best]:.2f}"
