"""Does the model draw what it is asked for? Measured with a judge that is independent of it.

found(y, w) = share of samples, drawn with y asked at guidance w, in which the judge names y
base(y)     = the same of samples of which nothing was asked, guidance 0
ceiling     = the judge's accuracy on reconstructions of held-out images

All samples of a guidance are drawn in batches that mix what is asked; sample i of every value and
guidance has seed i.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hebm_sample.data.dataset import ImageDataset
from hebm_sample.errors import UserInputError
from hebm_sample.evaluation.classifiers import Wish
from hebm_sample.evaluation.control_results import (
    Asked,
    Control,
    ControlPlan,
    Edit,
    Layers,
    Share,
    Variable,
)
from hebm_sample.evaluation.distances import as_bytes
from hebm_sample.io.seeds import derived_seed
from hebm_sample.metrics.attribute_classifier import Verdict, accuracies
from hebm_sample.pipeline.editing import ENCODE_STREAM
from hebm_sample.pipeline.pipeline import Pipeline

__all__ = ["control"]


@dataclass(frozen=True)
class _Bench:
    """A model, its judge, and what all measurements share."""

    pipe: Pipeline
    judge: Any
    columns: dict[str, str]
    training: ImageDataset
    held_out: ImageDataset
    batch_size: int
    progress: bool
    sampling: dict[str, Any] = field(default_factory=dict)

    def batches(self, count: int, what: str) -> Iterator[slice]:
        """Slices of 0 ... count - 1, under a bar."""
        with tqdm(total=count, desc=what, unit="image", disable=not self.progress) as bar:
            for start in range(0, count, self.batch_size):
                rows = slice(start, min(start + self.batch_size, count))
                yield rows
                bar.update(rows.stop - rows.start)

    def options(self) -> dict[str, Any]:
        """Of every drawing call."""
        return {"batch_size": self.batch_size, "output_type": "torch", **self.sampling}

    def verdict(self, parts: list[Tensor]) -> Verdict:
        """On images in [0, 1], as they would be saved."""
        return self.judge.judge(as_bytes(torch.cat(parts) * 2 - 1))

    def drawn(self, seeds: Sequence[int], wishes: Sequence[Wish] | None, weight: float) -> Verdict:
        """On samples of these seeds, with one wish a seed or none."""
        images = []
        for rows in self.batches(len(seeds), f"guidance {weight:g}"):
            asked = {} if wishes is None else {"symbols": wishes[rows], "guidance": weight}
            out = self.pipe(seeds=seeds[rows], **asked, **self.options())
            images.append(out.images)
        return self.verdict(images)

    def reconstructed(self, images: np.ndarray) -> Tensor:
        """Of (N, 3, S, S) bytes, in [0, 1]: of the u that `edit` with seeds 0, 1, ... starts
        from.
        """
        found = []
        for rows in self.batches(len(images), "reconstructions"):
            seeds = [derived_seed(i, ENCODE_STREAM) for i in range(rows.start, rows.stop)]
            u = self.pipe.encode(_unit(images[rows]), seeds=seeds, batch_size=self.batch_size)
            found.append(
                self.pipe.decode(u, output_type="torch", batch_size=self.batch_size).cpu()
            )
        return torch.cat(found)

    def index(self, name: str, value: str) -> int:
        """The label of a variable's value."""
        return self.pipe.symbols[name].index(value)

    def names(self, verdict: Verdict, wish: Wish) -> np.ndarray:
        """Where the judge names all that is asked, (N,)."""
        return np.all(
            [verdict.values(self.columns[n]) == self.index(n, v) for n, v in wish.items()], axis=0
        )

    def labelled(self, images: ImageDataset, wish: Wish) -> tuple[np.ndarray, np.ndarray]:
        """Rows whose labels of all that is asked are known, (N,), and of which it holds."""
        labels = {n: images.labels[self.columns[n]] for n in wish}
        known = np.all([labels[n] >= 0 for n in wish], axis=0)
        return known, np.all([labels[n] == self.index(n, v) for n, v in wish.items()], axis=0)


def _unit(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(images)).float() / 255


def _wishes(bench: _Bench, names: Sequence[str]) -> list[Wish]:
    """All values of a variable with many, and of one with two that which has fewer labels."""
    wishes = []
    for name in names:
        values = bench.pipe.symbols[name]
        if len(values) == 2:
            column = bench.training.labels[bench.columns[name]]
            fewer = int((column == 1).sum() <= (column == 0).sum())
            values = values[fewer : fewer + 1]
        wishes += [{name: value} for value in values]
    return wishes


def _samples(
    bench: _Bench, wishes: list[Wish], plan: ControlPlan
) -> tuple[int, dict[str, list[np.ndarray]]]:
    """How many samples nothing was asked of; and, by guidance, where the judge finds each wish."""
    count = plan.num_images
    names = [next(iter(w)) if len(w) == 1 else "" for w in wishes]
    unconditional = count * max(names.count(n) for n in {*names} - {""})
    verdict = bench.drawn(range(unconditional), None, 0.0)
    found = {"0": [bench.names(verdict, wish) for wish in wishes]}
    for weight in sorted({*plan.guidance} - {0.0}):
        every = [wish for wish in wishes for _ in range(count)]
        verdict = bench.drawn(list(range(count)) * len(wishes), every, weight)
        found[f"{weight:g}"] = [
            bench.names(verdict, wish)[i * count : (i + 1) * count]
            for i, wish in enumerate(wishes)
        ]
    return unconditional, found


def _asked(
    bench: _Bench,
    wishes: list[Wish],
    found: dict[str, list[np.ndarray]],
    real: Verdict,
    again: Verdict,
) -> list[Asked]:
    held_out, asked = bench.held_out, []
    for i, wish in enumerate(wishes):
        known, holds = bench.labelled(bench.training, wish)
        _, here = bench.labelled(held_out, wish)
        asked.append(
            Asked(
                wish,
                Share.of(holds[known]),
                {weight: Share.of(named[i]) for weight, named in found.items()},
                Share.of(bench.names(real, wish)[here]),
                Share.of(bench.names(again, wish)[here]),
            )
        )
    return asked


def _edit(bench: _Bench, dataset: ImageDataset, plan: ControlPlan) -> Edit:
    """Change held-out images that lack all that is asked for."""
    assert plan.edit is not None
    wish = plan.edit
    lacking = []
    for name, value in wish.items():
        known, holds = bench.labelled(dataset, {name: value})
        lacking.append(known & ~holds)
    rows = np.flatnonzero(np.all(lacking, axis=0))[: plan.edit_images]
    if not len(rows):
        raise UserInputError(f"no held-out image is labelled as lacking {wish}")
    images = np.asarray(dataset.images[rows])
    again, edited = bench.reconstructed(images), []
    for part in bench.batches(len(images), "edits"):
        out = bench.pipe.edit(
            _unit(images[part]),
            wish,
            strength=plan.strength,
            guidance=plan.edit_guidance,
            method=plan.edit_method,
            seeds=range(part.start, part.stop),
            **bench.options(),
        )
        edited.append(out.images)
    shown = {"reconstruction": again, "edit": torch.cat(edited)}
    verdicts = {how: bench.verdict([x]) for how, x in shown.items()}
    without = ~bench.names(verdicts["reconstruction"], wish)
    before = bench.judge.judge(images)
    others = [c for n, c in bench.columns.items() if n not in wish]
    half = images.shape[2] // 2
    moved = {
        how: np.abs(as_bytes(x * 2 - 1).astype(np.float64) - images) for how, x in shown.items()
    }
    return Edit(
        symbols=wish,
        images=len(images),
        strength=plan.strength,
        guidance=plan.edit_guidance,
        method=plan.edit_method,
        flipped=Share.of(bench.names(verdicts["edit"], wish)[without]),
        others={how: _shift(before, v, others) for how, v in verdicts.items()},
        upper={how: float(x[:, :, :half].mean()) for how, x in moved.items()},
        whole={how: float(x.mean()) for how, x in moved.items()},
    )


def _shift(before: Verdict, after: Verdict, columns: Sequence[str]) -> float:
    """Mean absolute change of probabilities over these columns; nan of none."""
    moved = [
        np.abs(after.probabilities[c] - before.probabilities[c]).mean(dtype=np.float64)
        for c in columns
    ]
    return float(np.mean(moved)) if moved else float("nan")


def _layers(bench: _Bench, plan: ControlPlan) -> Layers:
    """Variations that keep the top k groups, for every k, and how far they are from each other."""
    count, variations = plan.layer_images, plan.variations
    own = bench.pipe(seeds=range(count), **bench.options())
    distances = []
    cuts = range(len(bench.pipe.generator.latent_shapes))
    for k in tqdm(cuts, desc="layers", unit="cut", disable=not bench.progress):
        out = bench.pipe.vary(own, slice(0, k), variations, **bench.options())
        features = torch.from_numpy(bench.verdict([out.images]).features).double()
        rows = features.reshape(count, variations, -1)
        pairs = torch.cdist(rows, rows).sum() / (count * variations * (variations - 1))
        distances.append(float(pairs))
    return Layers(count, variations, distances)


def _variables(
    bench: _Bench, names: Sequence[str], asked: list[Asked], real: Verdict, again: Verdict
) -> dict[str, Variable]:
    """What was asked of one variable at a time, with the judge's accuracies beside it."""
    right = [accuracies(verdict, bench.held_out.labels) for verdict in (real, again)]
    variables = {}
    for name in names:
        column, mine = bench.columns[name], [a for a in asked if name in a.symbols]
        variables[name] = Variable(
            column=column,
            values=len(bench.pipe.symbols[name]),
            asked=mine,
            found={w: Share.pooled([a.found[w] for a in mine]) for w in mine[0].found},
            real=right[0].get(column, {}),
            reconstructed=right[1].get(column, {}),
        )
    return variables


def _check_judge(
    judge: Any, columns: Mapping[str, str], names: Sequence[str], plan: ControlPlan
) -> None:
    """`UserInputError` if something is asked for that the judge cannot see."""
    combined = [name for wish in (*plan.combinations, plan.edit or {}) for name in wish]
    for name in (*names, *combined):
        if columns.get(name) not in judge.columns:
            raise UserInputError(
                f"{name!r} cannot be judged: the judge knows the columns "
                f"{', '.join(sorted(judge.columns))}; name one with --label-column"
            )
    if not names:
        raise UserInputError("no variable to ask for; give the names of some")


def control(
    pipe: Pipeline,
    training: ImageDataset,
    held_out: ImageDataset,
    judge: Any,
    report: Mapping[str, Any],
    columns: Mapping[str, str],
    plan: ControlPlan,
    *,
    batch_size: int = 50,
    progress: bool = True,
    announce: Callable[[str], object] = lambda _: None,
    **sampling: Any,
) -> Control:
    """Measure how well a model does what it is asked.

    Arguments:
        pipe: A model with symbols.
        training: The rows it was trained on; their labels say which value is the rarer one.
        held_out: Rows it was not trained on.
        judge: A `JudgeNet` of at least these columns, or what has its `judge` and `columns`.
        report: What is known of the judge.
        columns: Variable to label column, as `label_columns` finds them.
        plan: What to measure.
        batch_size: ImageDataset at a time.
        progress: Show bars.
        announce: Told what begins.
        sampling: Fields of `LangevinConfig` in place of the model's own.

    Raises:
        UserInputError: A variable without labels is asked for, or the judge does not know its
            column.
    """
    start = time.perf_counter()
    names = tuple(columns) if plan.attributes is None else plan.attributes
    _check_judge(judge, columns, names, plan)
    bench = _Bench(
        pipe,
        judge,
        {name: column for name, column in columns.items() if column in judge.columns},
        training,
        held_out.rows(0, min(plan.held_out, len(held_out))),
        batch_size,
        progress,
        {k: v for k, v in sampling.items() if v is not None},
    )
    announce("held-out images and reconstructions")
    images = np.asarray(bench.held_out.images)
    real, again = judge.judge(images), bench.verdict([bench.reconstructed(images)])
    announce("samples of what is asked")
    single = _wishes(bench, names)
    wishes = single + list(plan.combinations)
    unconditional, found = _samples(bench, wishes, plan)
    asked = _asked(bench, wishes, found, real, again)
    variables = _variables(bench, names, asked[: len(single)], real, again)
    announce("edits and layers")
    return Control(
        model=pipe.name,
        sampling=pipe.sampling_config(**sampling).to_dict(),
        judge=dict(report),
        num_images=plan.num_images,
        unconditional=unconditional,
        held_out=len(bench.held_out),
        variables=variables,
        combinations=asked[len(single) :],
        edit=_edit(bench, held_out, plan) if plan.edit else None,
        layers=_layers(bench, plan) if plan.layer_images else None,
        seconds=time.perf_counter() - start,
    )
