"""Tables and figures of what `tools/ablate.py` measured; docs/results.md has them too."""

from pathlib import Path
from typing import Any

from hebm_sample.evaluation.report.page import (
    Block,
    Heading,
    ReportImage,
    Table,
    Text,
    number,
    with_error,
)
from hebm_sample.evaluation.report.plots import bars

TITLES = {
    "levels": "T, noise levels (the same energies)",
    "steps": "gradients",
    "step-scale": "step scale c",
    "width": "width of the energy nets (equal time)",
    "ema": "exported weights",
    "lowest": "smallest noise level (the same energies)",
    "levels-mle": "T, noise levels (maximum likelihood, equal time)",
}


def blocks(results: dict[str, Any], figures: str = "figures") -> list[Block]:
    """The page of `results.json`."""
    ends = results["ends"]
    page: list[Block] = [
        Text(
            f"Fréchet distances in {results['features']}, {results['num_images']} images "
            f"(seeds 0 to {results['num_images'] - 1}) against {results['num_reference']} "
            "held-out ones, ± jackknife standard errors. "
            f"N(0, I) has {_frechet(ends['gaussian'])}, reconstructions "
            f"{_frechet(ends['reconstructions'])}. What is trained had "
            f"{results['training_budget']} each."
        )
    ]
    for name, rows in results["ablations"].items():
        header = [TITLES[name], "Fréchet", "gap closed", "KID", "seconds per image"]
        trained = any("training" in row for row in rows)
        table = []
        for row in rows:
            run = row.get("training", {})
            cells = [str(run.get("steps", "")), f"{run.get('parameters', 0) / 1e6:.2f} M"]
            table.append(
                [
                    row["label"],
                    _frechet(row),
                    number(_closed(row, ends)),
                    with_error(row["kernel"], row["kernel_error"], 4),
                    number(row["seconds_per_image"], 3),
                    *(cells if trained else []),
                ]
            )
        extra = ["training steps", "parameters"] if trained else []
        page += [Heading(TITLES[name][0].upper() + TITLES[name][1:], 3)]
        page += [Table([*header, *extra], table)]
        page += [
            ReportImage(f"{figures}/ablation-{name}.png", f"Fréchet distance by {TITLES[name]}")
        ]
    return page


def _frechet(row: dict[str, Any]) -> str:
    return with_error(row["frechet"], row["frechet_error"], 2)


def _closed(row: dict[str, Any], ends: dict[str, Any]) -> float:
    high, low = (ends[name]["frechet"] for name in ("gaussian", "reconstructions"))
    return (high - row["frechet"]) / (high - low)


def draw_figures(results: dict[str, Any], folder: Path) -> None:
    """A figure an ablation."""
    ends = results["ends"]
    levels = {
        "N(0, I)": ends["gaussian"]["frechet"],
        "reconstructions": ends["reconstructions"]["frechet"],
    }
    for name, rows in results["ablations"].items():
        points = {row["label"]: (row["frechet"], row["frechet_error"]) for row in rows}
        bars(
            folder / f"ablation-{name}.png",
            points,
            x=TITLES[name],
            y="Fréchet distance",
            levels=levels,
        )
