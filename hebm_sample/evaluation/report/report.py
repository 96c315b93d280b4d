"""One page with every figure of a model: `hebm-eval report NAME --data DATA --out OUT`.

    OUT/index.md, index.html     the page
    OUT/results.json             its numbers, a part a key
    OUT/figures/, nearest.png    its images
    OUT/parts/, draws/           what is kept, so that a second call goes on where the first was

A part that was measured before is not measured again while the package's version, the model, the
data, the sampler and its own settings are the same: they are its key. Parts that are not asked for
stay on the page while all but their own settings are. Every part carries the version that measured
it, and the numbers the hash of the weights that they are of. Seeds are fixed, so the same call
gives the same numbers to rounding.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hebm_sample import __version__
from hebm_sample.config import require_integer
from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.evaluation.baselines import run_baselines
from hebm_sample.evaluation.context import EvaluationContext, Spaces, fingerprint
from hebm_sample.evaluation.distances import feature_spaces
from hebm_sample.evaluation.duration import in_words
from hebm_sample.evaluation.reference import find_set
from hebm_sample.evaluation.report import images as report_images
from hebm_sample.evaluation.report import latents as report_latents
from hebm_sample.evaluation.report import ood as report_ood
from hebm_sample.evaluation.report.baselines import show_baselines
from hebm_sample.evaluation.report.page import Block, Heading, Text, to_html, to_markdown
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.io.extras import import_extra
from hebm_sample.io.files import sha256_of, write_atomically
from hebm_sample.io.kept import keep_json, kept_json
from hebm_sample.io.written import check_report_folder, mark_report_folder, report_results
from hebm_sample.metrics.inception import InceptionFeatures
from hebm_sample.metrics.prior_hole import FEWEST_ROWS

__all__ = ["PARTS", "ReportPlan", "check_extras", "shipped_gap", "write_report"]

FORMAT_VERSION = 1
PARTS = ("gap", "baselines", "control", "hole", "ood", "memorisation", "diagnostics")
WITHOUT_DATA = ("gap", "diagnostics")
SHOW: Mapping[str, Callable[[dict[str, Any]], list[Block]]] = {
    "gap": report_images.show_gap,
    "baselines": show_baselines,
    "control": report_images.show_control,
    "hole": report_latents.show_prior_hole,
    "ood": report_ood.show_ood,
    "memorisation": report_images.show_memorisation,
    "diagnostics": report_latents.show_diagnostics,
}


@dataclass(frozen=True)
class ReportPlan:
    """What to measure.

    Arguments:
        parts: Of `PARTS`, in their order; None for all that the data allow.
        feature_steps: Of the classifier, as in `evaluate`.
        inception: Also in Inception's features.
        ood_images: Images of each out-of-distribution set, at most.
        chain_images, chain_steps: Of the Langevin diagnostics.
        others: Out-of-distribution images by name, uint8 (N, 3, S, S), with what identifies them.
        baselines: Other priors of the same generator, name to folder.
        control: Measures control, and gives its figures with a `table`; None for a model without
            symbols.
        control_key: What its figures depend on.
        title, command: Of the page.
    """

    parts: tuple[str, ...] | None = None
    feature_steps: int | None = None
    inception: bool = False
    ood_images: int = 1000
    chain_images: int = 16
    chain_steps: int = 64
    others: Mapping[str, tuple[np.ndarray, str]] = field(default_factory=dict)
    baselines: Mapping[str, Path] = field(default_factory=dict)
    control: Callable[[], dict[str, Any]] | None = None
    control_key: Any = None
    title: str = "Measurements"
    command: str = ""

    def __post_init__(self) -> None:
        unknown = [p for p in self.parts or () if p not in PARTS]
        if unknown:
            raise UserInputError(
                f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}"
            )
        require_integer("ood_images", self.ood_images, 2, 10**6)
        require_integer("chain_images", self.chain_images, 2, 10**4)
        require_integer("chain_steps", self.chain_steps, 8, 10**5)


def check_extras(plan: ReportPlan) -> None:
    """Before hours of work, not after them: `EnvironmentFailure` for a library that is missing."""
    import_extra("matplotlib.figure", "eval")
    if plan.inception:
        import_extra("torch_fidelity", "inception")
    if plan.parts is None or "hole" in plan.parts:
        import_extra("sklearn", "eval")
        import_extra("scipy", "eval")


def _chosen(context: EvaluationContext, plan: ReportPlan) -> tuple[list[str], dict[str, str]]:
    """Parts to measure, and why the others are not."""
    reasons = {}
    if context.held_out is None:
        reasons = {p: "needs the data: --data DIR" for p in PARTS if p not in WITHOUT_DATA}
        if find_set(context.pipe.name, context.pipe.config.generator.image_size) is None:
            reasons["gap"] = (
                "the package has no evaluation set for this model and size: --data DIR"
            )
    if context.held_out is not None and plan.control is None:
        reasons["control"] = "the model has no symbols that the data have labels for"
    if context.held_out is not None and context.num_images < FEWEST_ROWS:
        reasons["hole"] = f"needs {FEWEST_ROWS} images in each set, and there are to be fewer"
    if context.held_out is not None and not plan.baselines:
        reasons["baselines"] = "needs others to compare with: --baseline NAME=DIR"
    if plan.parts is not None:
        for part in plan.parts:
            if part in reasons:
                raise UserInputError(f"{part} cannot be measured: {reasons[part]}")
        return [p for p in PARTS if p in plan.parts], {}
    return [p for p in PARTS if p not in reasons], reasons


def shipped_gap(context: EvaluationContext) -> dict[str, Any]:
    """Distances without the data; `UserInputError` where the package has no evaluation set."""
    size = context.pipe.config.generator.image_size
    known = find_set(context.pipe.name, size)
    if known is None:
        raise UserInputError(
            f"the package has no evaluation set for {context.pipe.name} at {size}x{size}; "
            "give the data with --data"
        )
    return report_images.run_shipped_gap(context, known)


class _Report:
    """One report in its folder."""

    def __init__(
        self,
        context: EvaluationContext,
        plan: ReportPlan,
        out: Path,
        announce: Callable[[str], object],
    ) -> None:
        self.context, self.plan, self.out, self.announce = context, plan, out, announce
        self._spaces: Spaces | None = None

    def spaces(self) -> Spaces:
        """Feature spaces, made when first needed."""
        if self._spaces is None:
            assert self.context.training is not None
            self.announce("feature spaces")
            self._spaces = feature_spaces(
                self.context.training,
                steps=self.plan.feature_steps,
                model=self.context.pipe.name,
                progress=self.context.progress,
            )
            if self.plan.inception:
                extractor = InceptionFeatures()
                self._spaces[extractor.name] = (extractor, extractor.protocol())
        return self._spaces

    def run(self, part: str) -> dict[str, Any]:
        """Measure a part."""
        context, plan, out = self.context, self.plan, self.out
        if part == "gap" and context.held_out is None:
            return shipped_gap(context)
        if part == "gap":
            return report_images.run_gap(context, self.spaces(), self.announce)
        if part == "baselines":
            return run_baselines(context, self.spaces(), plan.baselines)
        if part == "control":
            assert plan.control is not None
            return plan.control()
        if part == "hole":
            return report_latents.run_prior_hole(context, out)
        if part == "ood":
            others = {name: images for name, (images, _) in plan.others.items()}
            return report_ood.run_ood(context, others, out, images=plan.ood_images)
        if part == "memorisation":
            return report_images.run_memorisation(context, self.spaces(), out)
        return report_latents.run_diagnostics(
            context, out, images=plan.chain_images, steps=plan.chain_steps
        )

    def _shared(self) -> list[str]:
        """The space of another model's classifier in which this one's images are measured, too."""
        pipe = self.context.pipe
        known = find_set(pipe.name, pipe.config.generator.image_size)
        return [] if known is None or known.net_of is None else [known.space]

    def _ood_identities(self) -> list[Any]:
        """Of the images that scores take, beside the data's first rows."""
        every = self.context.every_held_out
        others = sorted((name, i) for name, (_, i) in self.plan.others.items())
        return [others, every and every.identity]

    def common(self) -> str:
        """Of what the figures of all parts depend on: version, weights, data, sampler."""
        context = self.context
        sampling = context.pipe.sampling_config(**context.sampling).to_dict()
        model = fingerprint(context.pipe, encoder=context.pipe.has_encoder)
        known = [FORMAT_VERSION, __version__, model, self._data(), context.num_images, sampling]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    def _data(self) -> list[str]:
        context = self.context
        return [x.identity for x in (context.training, context.held_out) if x is not None]

    def key(self, part: str) -> str:
        """Of everything that a part's figures depend on."""
        plan = self.plan
        own = {
            "gap": [plan.feature_steps, plan.inception, *self._shared()],
            "baselines": [
                4,
                *self._shared(),
                plan.feature_steps,
                plan.inception,
                _folder_keys(plan.baselines),
            ],
            "control": plan.control_key,
            "ood": [5, plan.ood_images, *self._ood_identities()],
            "memorisation": plan.feature_steps,
            "diagnostics": [plan.chain_images, plan.chain_steps],
        }
        known = [self.common(), part, own.get(part)]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    def others(self, parts: Sequence[str]) -> dict[str, Any]:
        """Figures that were measured before of this very model, data and sampler, of the parts
        that are not asked for now: they stay on the page.
        """
        common, found = self.common(), {}
        for part in PARTS:
            kept = None if part in parts else kept_json(self._place(part))
            if kept is not None and kept.get("common") == common:
                found[part] = kept["figures"]
        return found

    def _place(self, part: str) -> Path:
        return self.out / "parts" / f"{part}.json"

    def measured(self, part: str, which: str = "") -> dict[str, Any]:
        """A part's figures: those kept, or measured now and kept.

        Arguments:
            which: Of how many it is, to announce.
        """
        path, key = self._place(part), self.key(part)
        kept = kept_json(path)
        if kept is not None and kept.get("key") == key:
            self.announce(f"{part}: kept from before")
            return kept["figures"]
        self.announce(f"{part}{which}")
        start = time.perf_counter()
        figures = _plain(self.run(part))
        figures |= {"version": __version__, "part_seconds": time.perf_counter() - start}
        keep_json(path, {"key": key, "common": self.common(), "figures": figures})
        return figures

    def write(self, found: dict[str, Any], missing: dict[str, str]) -> None:
        """Page and numbers."""
        plan, name = self.plan, self.context.pipe.name
        results = {
            "format_version": FORMAT_VERSION,
            "version": __version__,
            "model": name,
            "weights": self.context.pipe.weights_hash,
            "data": self._data(),
            "num_images": self.context.num_images,
            "parts": {part: found[part] for part in PARTS if part in found},
            "not_measured": missing,
        }
        blocks: list[Block] = [Heading(f"{name}: {plan.title}", 1)]
        if plan.command:
            blocks.append(Text(f"Made by `{plan.command}`, hebm_sample {__version__}."))
        for part, figures in results["parts"].items():
            blocks += SHOW[part](figures)
        if missing:
            blocks.append(Heading("Not measured"))
            blocks += [Text(f"{part}: {reason}.") for part, reason in missing.items()]
        write_atomically(self.out / "results.json", _json(results))
        write_atomically(
            self.out / "index.md", to_markdown(blocks).encode(errors="backslashreplace")
        )
        write_atomically(
            self.out / "index.html", to_html(blocks).encode(errors="backslashreplace")
        )


def _folder_keys(folders: Mapping[str, Path]) -> list[Any]:
    """Names, and hashes of the weights and the description in each folder, and in the model of a
    run's folder: how it is sampled, too.
    """
    return [
        [
            name,
            sorted(
                (str(file.relative_to(folder)), sha256_of(file))
                for place in (Path(folder), Path(folder) / "model")
                for file in (place.iterdir() if place.is_dir() else ())
                if file.suffix == ".safetensors" or file.name == "config.json"
            ),
        ]
        for name, folder in sorted(folders.items())
    ]


def _plain(value: Any) -> Any:
    """JSON has no nan, and no NumPy numbers."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


@usual_defaults()
def write_report(
    context: EvaluationContext,
    plan: ReportPlan,
    out: Path,
    *,
    overwrite: bool = False,
    announce: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Measure what the plan asks for and write the page; returns what `results.json` holds of each
    part.

    Arguments:
        context: The model and its images; its `folder` should lie in `out`.
        plan: What to measure.
        out: The report's folder, made if it is not there.
        overwrite: Replace another model's report.
        announce: Told what begins.

    Raises:
        UserInputError: A part was asked for that cannot be measured, or the folder holds somebody
            else's files, another model's report, or parts of other weights that would be lost.
        EnvironmentFailure: A library is missing, or the folder cannot be written.
    """
    check_extras(plan)
    check_report_folder(out, context.pipe.name, overwrite)
    try:
        out.mkdir(parents=True, exist_ok=True)
        mark_report_folder(out)
    except OSError as error:
        raise EnvironmentFailure(f"cannot make {out}: {error.strerror or error}") from error
    parts, missing = _chosen(context, plan)
    report, found = _Report(context, plan, out, announce), {}
    kept = report.others(parts)
    _refuse_to_lose(context, out, [*parts, *kept], overwrite)
    missing = {part: reason for part, reason in missing.items() if part not in kept}
    begun = time.perf_counter()
    for i, part in enumerate(parts, 1):
        passed = in_words(time.perf_counter() - begun)
        found[part] = report.measured(part, f": part {i} of {len(parts)}, after {passed}")
        report.write(kept | found, missing)  # what is there so far can be read meanwhile
    return kept | found


def _refuse_to_lose(
    context: EvaluationContext, out: Path, parts: Sequence[str], overwrite: bool
) -> None:
    """`UserInputError` if the page there has parts of other weights, data or settings that the
    new one would be without.
    """
    there = report_results(out)
    lost = [part for part in (there or {"parts": {}})["parts"] if part not in parts]
    if lost and not overwrite:
        raise UserInputError(
            f"{out} holds a report of {context.pipe.name} with other weights, data or settings, "
            f"whose {', '.join(lost)} would be lost; measure these too (--parts), choose another "
            "folder, or add --overwrite"
        )
