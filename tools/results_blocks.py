"""The parts of docs/results.md that are made from docs/results/*.json, a function each.

    {{gap cifar10-32}}      a line of page.md.in, answered by `BLOCKS["gap"]` from cifar10-32.json

A part that was not measured leaves nothing on the page.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablation_page import blocks as ablation_blocks

from hebm_sample.evaluation.report.baselines import show_baselines
from hebm_sample.evaluation.report.images import show_memorisation
from hebm_sample.evaluation.report.latents import PRIORS, show_diagnostics, show_prior_hole
from hebm_sample.evaluation.report.ood import show_ood
from hebm_sample.evaluation.report.page import (
    Block,
    Heading,
    ReportImage,
    Table,
    Text,
    number,
    to_markdown,
    with_error,
)

Results = Mapping[str, Any]

# What each model was to reach.
GAP_GOAL, DEAD_NATS = 0.5, 1.0
CLASS_GOALS = {"1": 0.5, "best": 0.75}
ATTRIBUTE_GOAL = 0.8
# Seconds of the energies' training, as the cards in docs/cards have them, run by run: of weights
# whose config has no record of it.
TRAINED = {
    "celeba64-64": 2312 + 1787 + 1511,
    "celebahq-64": 2312 + 1787 + 1501,
    "celebahq-256": 2312 + 1787 + 1501,
}


def image_path(key: str, path: str) -> str:
    """Where a report's figure of a model lies beside the page."""
    return f"images/results/{key}-{Path(path).stem}.webp"


def _placed(blocks: Sequence[Block], key: str, root: Path) -> list[Block]:
    """A report's blocks as a section's: headings a level down, images where the docs have them,
    without those that they have not.
    """
    found: list[Block] = []
    for block in blocks:
        if isinstance(block, Heading):
            block = Heading(block.text, 3)
        if isinstance(block, ReportImage):
            block = replace(block, path=image_path(key, block.path))
            if not (root / block.path).is_file():
                continue
        found.append(block)
    return found


def headline_gap(results: Results) -> tuple[str, Mapping[str, Any]]:
    """The first space's name and distances."""
    return next(iter(results["parts"]["gap"]["gaps"].items()))


# Distances


def gap(results: Results) -> list[Block]:
    """Distances in every space, neighbours, KL, bits, goals."""
    found, count = results["parts"]["gap"], len(results["parts"]["gap"]["kl"])
    header = ["features", "reconstructions", "N(0, I)", "energy-based prior", "gap closed"]
    rows = []
    for space, x in found["gaps"].items():
        names = ("fd_recon", "fd_gauss", "fd_model")
        closed = with_error(x["gap_closed"], x["gap_closed_error"])
        distances = [with_error(x[n], x[f"{n}_error"], 2) for n in names]
        rows.append([space, *distances, f"**{closed}**"])
    groups = ["", *(f"group {i}" for i in range(count))]
    latents = [
        ["KL, nats", *(number(v, 1) for v in found["kl"])],
        ["mean square of q(u)", *(number(v) for v in found["u_square_posterior"])],
        ["mean square of samples", *(number(v) for v in found["u_square"])],
    ]
    images = headline_gap(results)[1]["num_images"]
    text = (
        "Bits per dimension on held-out images (Gaussian-prior ELBO): "
        f"{found['bits']:.3f}, of which distortion {found['distortion_bits']:.3f}. "
        f"Sampling {images:,} images took {found['sampling_seconds']:.0f} s."
    )
    quality: list[Block] = [_quality(found["quality"])] if found.get("quality") else []
    image = ReportImage("figures/gap.png", "Distances to held-out images")
    blocks = [Table(header, rows), image, *quality, Table(groups, latents)]
    return [*blocks, Text(text), _goals(results)]


def _quality(spaces: Mapping[str, Any]) -> Table:
    """KID and the neighbours in the first space."""
    space, sets = next(iter(spaces.items()))
    measures = [m for m in ("precision", "recall", "density", "coverage") if m in sets["ebm"]]
    titles = {"reconstructions": "reconstructions", **PRIORS}
    rows = [
        [
            title,
            with_error(sets[name]["kernel"], sets[name]["kernel_error"], 4),
            *(with_error(sets[name][m], sets[name][f"{m}_error"]) for m in measures),
        ]
        for name, title in titles.items()
        if name in sets
    ]
    return Table([f"in {space}", "KID", *measures], rows)


def _goals(results: Results) -> Text:
    """Which of the goals are reached."""
    parts, (_, distances) = results["parts"], headline_gap(results)
    closed, kl = distances["gap_closed"], min(parts["gap"]["kl"])
    goals = [
        (f"a gap closed of {GAP_GOAL}", closed >= GAP_GOAL, f"{closed:.3f}"),
        ("no dead group", kl > DEAD_NATS, f"least KL {kl:.1f} nats"),
    ]
    if "memorisation" in parts:
        shorter = parts["memorisation"]["shorter"]
        goals.append(
            (
                "no sign of memorisation",
                parts["memorisation"]["no_shorter"],
                f"a sample is nearer to its nearest training image than a held-out image with "
                f"probability {shorter:.3f}",
            )
        )
    said = "; ".join(
        f"{goal}: {'reached' if met else 'short'} ({value})" for goal, met, value in goals
    )
    return Text(f"Goals. {said[0].upper()}{said[1:]}.")


# Control


def _share(found: Mapping[str, Any]) -> str:
    return with_error(found["share"], found["error"], 2)


def control(results: Results) -> list[Block]:
    """What the attribute classifier predicts, by condition and guidance."""
    found = results["parts"]["control"]
    several = {k: v for k, v in found["variables"].items() if len(v["asked"]) > 1}
    single = [v["asked"][0] for v in found["variables"].values() if len(v["asked"]) == 1]
    blocks: list[Block] = []
    for name, variable in several.items():
        blocks += _class_table(name, variable)
    if single:
        blocks += _attribute_table([*single, *found["combinations"]])
    if (layers := found.get("layers")) is not None:
        distances = ", ".join(f"{k}: {d:.2f}" for k, d in enumerate(layers["distances"]))
        blocks.append(
            Text(
                "Mean distance, in the classifier's features, of "
                f"{layers['variations']} variations of {layers['images']} samples, "
                f"by the number of top groups clamped: {distances}."
            )
        )
    return blocks


def _class_table(name: str, variable: Mapping[str, Any]) -> list[Block]:
    guidance, bound = list(variable["found"]), variable["reconstructed"]["accuracy"]
    header = ["condition", *(f"guidance {g}" for g in guidance), "real images", "reconstructions"]
    rows = [
        [
            asked["symbols"][name],
            *(_share(asked["found"][g]) for g in guidance),
            _share(asked["real"]),
            _share(asked["reconstructed"]),
        ]
        for asked in variable["asked"]
    ]
    shares = {g: variable["found"][g]["share"] for g in guidance}
    over_all = [f"**{with_error(*_pair(variable['found'][g]))}**" for g in guidance]
    rows.append(["**all**", *over_all, number(variable["real"]["accuracy"]), number(bound)])
    ratios = {g: share / bound for g, share in shares.items()}
    rows.append(["of the upper bound", *(f"{r:.2f}" for r in ratios.values()), "", "1"])
    best = max(ratios, key=lambda g: ratios[g])
    enough = next((g for g, r in ratios.items() if r >= CLASS_GOALS["best"]), None)
    first = "reached" if ratios["1"] >= CLASS_GOALS["1"] else "short"
    second = f"reached from guidance {enough} on" if enough else f"short ({ratios[best]:.2f})"
    text = (
        f"Chance is {1 / variable['values']:.2f}, and the upper bound is the classifier's "
        f"accuracy on reconstructions. Goals. Half of the bound at guidance 1: {first} "
        f"({ratios['1']:.2f}); three quarters at the best guidance, chosen on these samples: "
        f"{second}."
    )
    return [Table(header, rows), Text(text)]


def _pair(found: Mapping[str, Any]) -> tuple[float, float]:
    return found["share"], found["error"]


def _attribute_table(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    guidance = list(rows[0]["found"])
    header = ["condition", "labels", *(f"guidance {g}" for g in guidance)]
    table = [
        [
            _spelt(row["symbols"]),
            _share(row["labelled"]),
            *(_share(row["found"][g]) for g in guidance),
            _share(row["real"]),
            _share(row["reconstructed"]),
        ]
        for row in rows
    ]
    best = {_spelt(r["symbols"]): max(x["share"] for x in r["found"].values()) for r in rows}
    short = {name: share for name, share in best.items() if share < ATTRIBUTE_GOAL}
    text = f"Goal. {ATTRIBUTE_GOAL} at the best guidance, chosen on these samples: "
    text += f"reached by {len(best) - len(short)} of {len(best)}"
    if short:
        text += ", short are " + ", ".join(f"{n} ({s:.2f})" for n, s in short.items())
    return [Table([*header, "real images", "reconstructions"], table), Text(text + ".")]


def _spelt(symbols: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in symbols.items())


def edits(results: Results) -> list[Block]:
    """Edits that were measured, one row each."""
    found = results["edits"]
    first = found[0]
    rows = [
        [
            "reconstruction",
            "",
            f"{first['others']['reconstruction']:.3f}",
            f"{first['upper']['reconstruction']:.1f}",
            f"{first['whole']['reconstruction']:.1f}",
        ]
    ]
    for edit in found:
        method = "DDIM-style inversion" if edit.get("method") == "flow" else "SDEdit"
        rows.append(
            [
                f"{method}, strength {edit['strength']:g}, guidance {edit['guidance']:g}",
                _share(edit["flipped"]),
                f"{edit['others']['edit']:.3f}",
                f"{edit['upper']['edit']:.1f}",
                f"{edit['whole']['edit']:.1f}",
            ]
        )
    text = (
        f"Edits: {first['images']} held-out images that lack it, `{_spelt(first['symbols'])}` "
        "asked for. *Flipped*: of those for whose reconstruction the classifier does not "
        "predict it. Beside it what else moved, as mean absolute change against the image "
        "itself: the predicted probabilities of all other columns, and pixels from 0 to 255."
    )
    header = ["", "flipped", "other probabilities", "upper half's pixels", "all pixels"]
    return [Text(text), Table(header, rows)]


# With another figure


def baselines(results: Results) -> list[Block]:
    """The report's part, with distances against seconds."""
    blocks = show_baselines(results["parts"]["baselines"])
    known = TRAINED.get(f"{results['model']}-{results['resolution']}")
    seconds, source = results.get("trained"), "config"
    if seconds is None:
        seconds, source = known, "card"
    if seconds is not None:
        said = f"The model's own energies were trained for {seconds:,.0f} s (its {source})."
        blocks.append(Text(said))
    return [*blocks, ReportImage("figures/quality.png", "Distance against seconds per image")]


def hole(results: Results) -> list[Block]:
    """The report's part, with bars."""
    image = ReportImage("figures/hole-bars.png", "Accuracy in telling q(u) from samples, by group")
    return [*show_prior_hole(results["parts"]["hole"]), image]


# Together


def summary(models: Mapping[str, Results]) -> list[Block]:
    """A row per model."""
    rows = []
    for results in models.values():
        space, x = headline_gap(results)
        hole = results["parts"].get("hole")
        memory = results["parts"].get("memorisation")
        rows.append(
            [
                f"`{results['model']}`, {results['resolution']}x{results['resolution']}",
                f"{x['num_images']:,}",
                *(number(x[n], 2) for n in ("fd_recon", "fd_gauss", "fd_model")),
                f"**{with_error(x['gap_closed'], x['gap_closed_error'])}**",
                space,
                "–"
                if hole is None
                else " → ".join(f"{hole[p]['joint']['accuracy']:.2f}" for p in PRIORS),
                "–" if memory is None else with_error(memory["shorter"], memory["shorter_error"]),
            ]
        )
    header = ["model", "images", "reconstructions", "N(0, I)", "energy-based prior"]
    header += ["gap closed", "Fréchet distances in", "hole", "nearer to training"]
    text = (
        "*Images*: in each set. *Hole*: accuracy in telling q(u) from samples, all groups "
        "together, N(0, I) → energy-based prior; 0.5 is closed. *Nearer to training*: probability "
        "that a sample is nearer to its nearest training image than a held-out image is, 0.5 "
        "where they are alike; whether samples are nearer is one test of all distances: each "
        "model's section has its answer. –: not measured yet."
    )
    return [Table(header, rows), Text(text)]


def ablations(results: Results) -> list[Block]:
    """`tools/ablate.py`'s page."""
    return ablation_blocks(dict(results["ablations"]))


def _part(name: str, show: Callable[[Any], list[Block]]) -> Callable[[Results], list[Block]]:
    return lambda results: show(results["parts"][name])


# Kind to what it needs, as a key of the results or of their parts, and what makes it.
BLOCKS: dict[str, tuple[str, Callable[[Results], list[Block]]]] = {
    "gap": ("gap", gap),
    "control": ("control", control),
    "edits": ("edits", edits),
    "ablations": ("ablations", ablations),
    "baselines": ("baselines", baselines),
    "hole": ("hole", hole),
    "ood": ("ood", _part("ood", show_ood)),
    "memorisation": ("memorisation", _part("memorisation", show_memorisation)),
    "diagnostics": ("diagnostics", _part("diagnostics", show_diagnostics)),
}


def section(kind: str, key: str, results: Results, docs: Path) -> str:
    """Markdown of one kind of one model; "" where it was not measured."""
    needs, make = BLOCKS[kind]
    if needs not in results["parts"] and needs not in results:
        return ""
    return to_markdown(_placed(make(results), key, docs)).rstrip()
