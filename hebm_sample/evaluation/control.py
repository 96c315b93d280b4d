"""Do samples show what they are conditioned on? Measured with an independent attribute classifier.

    conditional accuracy (y, w)  share of samples with condition y at guidance w for which the
                                 classifier predicts y
    unconditional rate (y)       the same of samples without a condition, guidance 0
    reconstruction upper bound   the classifier's accuracy on reconstructions of held-out images

All samples of a guidance are made in batches that mix conditions; sample i of every value and
guidance has seed i. Guidance weighs log p(y | u) as in Dhariwal and Nichol, "Diffusion Models Beat
GANs on Image Synthesis" (arXiv 2105.05233), with the model's own symbols in place of a classifier.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hebm_sample.config import SymbolConfig
from hebm_sample.data.dataset import ImageDataset
from hebm_sample.data.holdout import SelectedRows, random_rows
from hebm_sample.errors import UserInputError
from hebm_sample.evaluation.classifiers import TargetValues
from hebm_sample.evaluation.context import as_bytes
from hebm_sample.evaluation.control_results import (
    ConditionRates,
    Control,
    ControlPlan,
    Edit,
    Layers,
    Share,
    Variable,
)
from hebm_sample.io.bars import disabled
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.metrics.attribute_classifier import Predictions, accuracies
from hebm_sample.pipeline.editing import flow_options
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.training.label_columns import values_of

__all__ = ["check_classifier_columns", "control"]


@dataclass(frozen=True)
class ControlContext:
    """A model, an attribute classifier, and what all measurements share."""

    pipe: Pipeline
    classifier: Any
    columns: dict[str, str]
    training: ImageDataset
    held_out: ImageDataset
    batch_size: int
    progress: bool
    sampling: dict[str, Any] = field(default_factory=dict)

    def batches(self, count: int, what: str) -> Iterator[slice]:
        """Slices of 0 ... count - 1, under a bar."""
        with tqdm(total=count, desc=what, unit="image", disable=disabled(self.progress)) as bar:
            for start in range(0, count, self.batch_size):
                rows = slice(start, min(start + self.batch_size, count))
                yield rows
                bar.update(rows.stop - rows.start)

    def options(self) -> dict[str, Any]:
        """Of every sampling call."""
        usual = {"batch_size": self.batch_size, "output_type": "torch", "progress": False}
        return {**usual, **self.sampling}

    def predictions(self, parts: list[Tensor]) -> Predictions:
        """For images in [0, 1], as they would be saved."""
        return self.classifier.predict(as_bytes(torch.cat(parts) * 2 - 1))

    def sampled(
        self, seeds: Sequence[int], conditions: Sequence[TargetValues] | None, weight: float
    ) -> Predictions:
        """For samples of these seeds, with a condition each or none."""
        images = []
        for rows in self.batches(len(seeds), f"guidance {weight:g}"):
            asked: dict[str, Any] = {}
            if conditions is not None:
                asked = {"symbols": conditions[rows], "guidance": weight}
            out = self.pipe(seeds=seeds[rows], **asked, **self.options())
            images.append(out.images)
        return self.predictions(images)

    def reconstructed(self, images: np.ndarray) -> Tensor:
        """Of (N, 3, S, S) bytes, in [0, 1]: of the u that `edit` with seeds 0, 1, ... starts
        from.
        """
        found = []
        for rows in self.batches(len(images), "reconstructions"):
            seeds = range(rows.start, rows.stop)
            u = self.pipe.encode(_unit(images[rows]), seeds=seeds, batch_size=self.batch_size)
            found.append(
                self.pipe.decode(u, output_type="torch", batch_size=self.batch_size).cpu()
            )
        return torch.cat(found)

    def index(self, name: str, value: str) -> int:
        """The number of a variable's value."""
        return self.pipe.symbols[name].index(value)

    def values(self, name: str, labels: np.ndarray) -> np.ndarray:
        """Labels of a variable's column as numbers of its values, -1 where unknown."""
        names = self.training.label_names.get(self.columns[name])
        return values_of(SymbolConfig(name, self.pipe.symbols[name]), labels, names)

    def hits(self, predictions: Predictions, condition: TargetValues) -> np.ndarray:
        """Where all target values are predicted, (N,)."""
        return np.all(
            [
                self.values(n, predictions.values(self.columns[n])) == self.index(n, v)
                for n, v in condition.items()
            ],
            axis=0,
        )

    def labelled(
        self, images: ImageDataset, condition: TargetValues
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows whose labels of all the variables are known, (N,), and of which it holds."""
        labels = {n: self.values(n, images.labels[self.columns[n]]) for n in condition}
        known = np.all([labels[n] >= 0 for n in condition], axis=0)
        holds = [labels[n] == self.index(n, v) for n, v in condition.items()]
        return known, np.all(holds, axis=0)


def _unit(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(images)).float() / 255


def _conditions(context: ControlContext, names: Sequence[str]) -> list[TargetValues]:
    """All values of a variable with many, and of one with two that which has fewer labels."""
    conditions = []
    for name in names:
        values = context.pipe.symbols[name]
        if len(values) == 2:
            column = context.values(name, context.training.labels[context.columns[name]])
            fewer = int((column == 1).sum() <= (column == 0).sum())
            values = values[fewer : fewer + 1]
        conditions += [{name: value} for value in values]
    return conditions


def _samples(
    context: ControlContext, conditions: list[TargetValues], plan: ControlPlan
) -> tuple[int, dict[str, list[np.ndarray]]]:
    """How many samples are unconditional; and, by guidance, each condition's hits."""
    count = plan.num_images
    names = [next(iter(c)) if len(c) == 1 else "" for c in conditions]
    unconditional = count * max(names.count(n) for n in {*names} - {""})
    predictions = context.sampled(range(unconditional), None, 0.0)
    found = {"0": [context.hits(predictions, c) for c in conditions]}
    for weight in sorted({*plan.guidance} - {0.0}):
        every = [c for c in conditions for _ in range(count)]
        predictions = context.sampled(list(range(count)) * len(conditions), every, weight)
        found[f"{weight:g}"] = [
            context.hits(predictions, c)[i * count : (i + 1) * count]
            for i, c in enumerate(conditions)
        ]
    return unconditional, found


def _rates(
    context: ControlContext,
    conditions: list[TargetValues],
    found: dict[str, list[np.ndarray]],
    real: Predictions,
    again: Predictions,
) -> list[ConditionRates]:
    """One per condition; `real` and `again` are of held-out images and their reconstructions."""
    rates = []
    for i, condition in enumerate(conditions):
        known, holds = context.labelled(context.training, condition)
        _, here = context.labelled(context.held_out, condition)
        rates.append(
            ConditionRates(
                condition,
                Share.of(holds[known]),
                {weight: Share.of(hits[i]) for weight, hits in found.items()},
                Share.of(context.hits(real, condition)[here]),
                Share.of(context.hits(again, condition)[here]),
            )
        )
    return rates


# Edits and layers


def _lacking(
    context: ControlContext, dataset: ImageDataset, condition: TargetValues, most: int
) -> np.ndarray:
    """Images (N, 3, S, S) that by their labels lack all target values."""
    lacking = []
    for name, value in condition.items():
        known, holds = context.labelled(dataset, {name: value})
        lacking.append(known & ~holds)
    rows = np.flatnonzero(np.all(lacking, axis=0))
    if not len(rows):
        raise UserInputError(f"no held-out image is labelled as lacking {condition}")
    if isinstance(dataset.images, SelectedRows):  # sorted by class, maybe
        rows = rows[random_rows(len(rows), most)]
    return np.asarray(dataset.images[rows[:most]])


def _check_edit(context: ControlContext, dataset: ImageDataset, plan: ControlPlan) -> None:
    """`UserInputError` before anything is sampled for an edit that cannot be measured."""
    if plan.edit is None:
        return
    _lacking(context, dataset, plan.edit, 1)
    if plan.edit_method == "flow":
        flow_options(context.pipe.model, dict(context.sampling))


def _edited(context: ControlContext, images: np.ndarray, plan: ControlPlan) -> Tensor:
    """Edited images, (N, 3, S, S) in [0, 1]."""
    edited = []
    for part in context.batches(len(images), "edits"):
        out = context.pipe.edit(
            _unit(images[part]),
            plan.edit,
            strength=plan.strength,
            guidance=plan.edit_guidance,
            method=plan.edit_method,
            seeds=range(part.start, part.stop),
            **context.options(),
        )
        edited.append(out.images)
    return torch.cat(edited)


def _edit(context: ControlContext, dataset: ImageDataset, plan: ControlPlan) -> Edit:
    """Change held-out images that lack all target values."""
    assert plan.edit is not None
    images = _lacking(context, dataset, plan.edit, plan.edit_images)
    shown = {"reconstruction": context.reconstructed(images)}
    shown["edit"] = _edited(context, images, plan)
    predictions = {how: context.predictions([x]) for how, x in shown.items()}
    before = context.classifier.predict(images)
    others = [c for n, c in context.columns.items() if n not in plan.edit]
    half = images.shape[2] // 2
    moved = {
        how: np.abs(as_bytes(x * 2 - 1).astype(np.float64) - images) for how, x in shown.items()
    }
    without = ~context.hits(predictions["reconstruction"], plan.edit)
    return Edit(
        condition=plan.edit,
        images=len(images),
        strength=plan.strength,
        guidance=plan.edit_guidance,
        method=plan.edit_method,
        flipped=Share.of(context.hits(predictions["edit"], plan.edit)[without]),
        others={how: _shift(before, p, others) for how, p in predictions.items()},
        upper={how: float(x[:, :, :half].mean()) for how, x in moved.items()},
        whole={how: float(x.mean()) for how, x in moved.items()},
    )


def _shift(before: Predictions, after: Predictions, columns: Sequence[str]) -> float:
    """Mean absolute change of probabilities over these columns; nan of none."""
    moved = [
        np.abs(after.probabilities[c] - before.probabilities[c]).mean(dtype=np.float64)
        for c in columns
    ]
    return float(np.mean(moved)) if moved else float("nan")


def _layers(context: ControlContext, plan: ControlPlan) -> Layers:
    """Distances between variations that clamp the top k groups, for every k."""
    count, variations = plan.layer_images, plan.variations
    own = context.pipe(seeds=range(count), **context.options())
    distances = []
    cuts = range(len(context.pipe.generator.latent_shapes))
    for k in tqdm(cuts, desc="layers", unit="cut", disable=disabled(context.progress)):
        out = context.pipe.vary(own, slice(0, k), variations, **context.options())
        features = torch.from_numpy(context.predictions([out.images]).features).double()
        rows = features.reshape(count, variations, -1)
        pairs = torch.cdist(rows, rows).sum() / (count * variations * (variations - 1))
        distances.append(float(pairs))
    return Layers(count, variations, distances)


def _over_all(hits: Sequence[np.ndarray], weight: str) -> Share:
    """Over the conditions of one variable, each with its hits (N,)."""
    if len(hits) == 1:
        return Share.of(hits[0])
    if weight != "0":
        return Share.clustered(np.stack(hits, axis=1))
    size = len(hits[0]) // len(hits)
    blocks = [row[i * size : (i + 1) * size] for i, row in enumerate(hits)]
    return Share.of(np.concatenate(blocks))


def _variables(
    context: ControlContext,
    rates: Mapping[str, list[ConditionRates]],
    hits: Mapping[str, dict[str, list[np.ndarray]]],
    right: Sequence[Mapping[str, Any]],
) -> dict[str, Variable]:
    """One variable at a time, with the classifier's accuracies on real images and on
    reconstructions, `right`, beside it.
    """
    return {
        name: Variable(
            column=context.columns[name],
            values=len(context.pipe.symbols[name]),
            conditions=mine,
            by_guidance={w: _over_all(found, w) for w, found in hits[name].items()},
            real=right[0].get(context.columns[name], {}),
            reconstructed=right[1].get(context.columns[name], {}),
        )
        for name, mine in rates.items()
    }


def check_classifier_columns(
    classifier: Any, columns: Mapping[str, str], plan: ControlPlan
) -> tuple[str, ...]:
    """Names of the variables to measure; `UserInputError` if a condition is of a column that the
    classifier has not.
    """
    names = tuple(columns) if plan.attributes is None else plan.attributes
    combined = [name for condition in (*plan.combinations, plan.edit or {}) for name in condition]
    for name in (*names, *combined):
        if columns.get(name) not in classifier.columns:
            raise UserInputError(
                f"{name!r} cannot be measured: the attribute classifier has the columns "
                f"{', '.join(sorted(classifier.columns))}; name one with --label-column"
            )
    if not names:
        raise UserInputError("no variable to ask for; give the names of some")
    return names


@usual_defaults()
def control(
    pipe: Pipeline,
    training: ImageDataset,
    held_out: ImageDataset,
    classifier: Any,
    report: Mapping[str, Any],
    columns: Mapping[str, str],
    plan: ControlPlan,
    *,
    batch_size: int = 50,
    progress: bool = True,
    announce: Callable[[str], object] = lambda _: None,
    **sampling: Any,
) -> Control:
    """Measure how well a model's samples and edits follow conditions.

    Arguments:
        pipe: A model with symbols.
        training: The rows it was trained on; their labels say which value is the rarer one.
        held_out: Rows it was not trained on.
        classifier: An `AttributeClassifier` of at least these columns, or what has its `predict`
            and `columns`.
        report: What is known of the classifier.
        columns: Variable to label column, as `label_columns` finds them.
        plan: What to measure.
        batch_size: Images at a time.
        progress: Show bars.
        announce: Told what begins.
        sampling: Fields of `LangevinConfig` in place of the model's own.

    Raises:
        UserInputError: A variable without labels is asked for, or the classifier does not know
            its column.
    """
    start = time.perf_counter()
    names = check_classifier_columns(classifier, columns, plan)
    context = ControlContext(
        pipe,
        classifier,
        {name: column for name, column in columns.items() if column in classifier.columns},
        training,
        held_out.some(plan.held_out),
        batch_size,
        progress,
        {k: v for k, v in sampling.items() if v is not None},
    )
    _check_edit(context, held_out, plan)
    figures = _of_samples(context, names, plan, announce)
    announce("edits and layers")
    return Control(
        model=pipe.name,
        sampling=pipe.sampling_config(**sampling).to_dict(),
        classifier=dict(report),
        num_images=plan.num_images,
        held_out=len(context.held_out),
        edit=_edit(context, held_out, plan) if plan.edit else None,
        layers=_layers(context, plan) if plan.layer_images else None,
        **figures,
        seconds=time.perf_counter() - start,
    )


def _of_samples(
    context: ControlContext,
    names: Sequence[str],
    plan: ControlPlan,
    announce: Callable[[str], object],
) -> dict[str, Any]:
    """Figures of samples: `unconditional`, `variables` and `combinations` of `Control`."""
    announce("held-out images and reconstructions")
    images = np.asarray(context.held_out.images)
    real = context.classifier.predict(images)
    again = context.predictions([context.reconstructed(images)])
    announce("conditional samples")
    single = _conditions(context, names)
    conditions = single + list(plan.combinations)
    unconditional, found = _samples(context, conditions, plan)
    rates = _rates(context, conditions, found, real, again)
    rows = {name: [i for i, c in enumerate(single) if name in c] for name in names}
    hits = {
        name: {weight: [x[i] for i in mine] for weight, x in found.items()}
        for name, mine in rows.items()
    }
    return {
        "unconditional": unconditional,
        "variables": _variables(
            context,
            {name: [rates[i] for i in mine] for name, mine in rows.items()},
            hits,
            [accuracies(p, context.held_out.labels) for p in (real, again)],
        ),
        "combinations": rates[len(single) :],
    }
