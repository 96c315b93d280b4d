"""Baselines on the page: a table a space, and a sentence on which prior wins."""

from collections.abc import Mapping
from typing import Any

from hebm_sample.evaluation.report.page import Block, Heading, Table, Text, number, with_error

__all__ = ["baseline_table", "show_baselines", "who_wins"]

# Of a lead at 1 in 20; of the mean of five numbers by Student's t with 4 degrees of freedom.
LEVEL_ERRORS, LEVEL_ERRORS_OF_FIVE = 2.0, 2.78


def _decoding(found: Mapping[str, Any]) -> str:
    seconds = found.get("decoding_seconds_per_image")  # reports of before have none
    return "; decoding comes to all alike" + (
        "" if seconds is None else f", {seconds:.4f} s per image"
    )


_HEADER = ("", "Fréchet", "gap closed", "KID", "precision", "recall", "seconds per image")
_HEADER += ("parameters", "seconds of training", "above ours")


def baseline_table(rows: Mapping[str, Any], differences: Mapping[str, Any]) -> Table:
    """A row a prior, of one space."""
    return Table(
        _HEADER,
        [
            [
                name,
                with_error(row["frechet"], row["frechet_error"], 2),
                number(row["gap_closed"]),
                with_error(row["kernel"], row["kernel_error"], 4),
                number(row.get("precision")),
                number(row.get("recall")),
                number(row["seconds_per_image"], 4),
                _millions(row.get("parameters")),
                number(row.get("training_seconds"), 0),
                _above(differences.get(name)),
            ]
            for name, row in rows.items()
        ],
    )


def show_baselines(found: dict[str, Any]) -> list[Block]:
    """The part's blocks."""
    # Reports of before have the mean of five small sets, which an error of five goes with.
    by_groups = found.get("differences_by") == "jackknife"
    how = (
        "± the standard error of that difference (jackknife, the reference left out along)."
        if by_groups
        else "over five disjoint sets of seeds, each a fifth of the images, ± the standard error "
        "of the five."
    )
    blocks: list[Block] = [
        Heading("Baselines"),
        Text(
            f"The same generator, {found['count']} images and seeds, the same reference. "
            "Seconds are those of sampling u alone" + _decoding(found) + ". The last column is by "
            "how much a Fréchet distance is above the energy-based prior's, " + how
        ),
    ]
    for space, rows in found["spaces"].items():
        differences = found.get("differences", {}).get(space, {})
        errors = LEVEL_ERRORS if by_groups else LEVEL_ERRORS_OF_FIVE
        who = who_wins(rows, differences, found["own"], errors) if "own" in found else ""
        blocks += [Text(f"In {space}: {who}"), baseline_table(rows, differences)]
    blocks += [Text(f"Note: {note}.") for note in found.get("notes", ())]
    return blocks


def who_wins(
    rows: Mapping[str, Any],
    differences: Mapping[str, Any],
    own: str,
    errors: float = LEVEL_ERRORS,
) -> str:
    """A sentence on which prior is nearest to the reference.

    Arguments:
        errors: A lead of less than so many standard errors is none.
    """
    priors = {
        name: row["frechet"]
        for name, row in rows.items()
        if name != "reconstructions" and row["frechet"] is not None
    }
    best = min((name for name in priors if name != own), key=lambda name: priors[name])
    lead = differences.get(best)
    if lead is None:  # too few images for sets of seeds
        nearest = min(priors, key=lambda name: priors[name])
        return f"nearest to the reference is {nearest}."
    by = f"{number(abs(lead['value']), 2)} ± {number(lead['error'], 2)}"
    if abs(lead["value"]) < errors * lead["error"]:
        within = f"within {errors:g} standard errors"
        return f"the energy-based prior and {best} are level, {within} ({by})."
    if lead["value"] > 0:
        return f"the energy-based prior wins; the next, {best}, is {by} above it."
    return f"{best} wins, {by} below the energy-based prior."


def _millions(count: int | None) -> str:
    return "–" if not count else f"{count / 1e6:.2f} M"


def _above(difference: Mapping[str, float] | None) -> str:
    return "" if difference is None else with_error(difference["value"], difference["error"], 2)
