"""How good are the images, do they show what was asked, and what do the latents say?

Distances, their errors and the spaces to take them in; attribute classifiers; memorisation; the
prior hole.
"""

import importlib
from typing import Any

from hebm_sample.metrics.attribute_classifier import (
    AttributeClassifier,
    Predictions,
    accuracies,
    load_attribute_classifier,
    save_attribute_classifier,
    train_attribute_classifier,
)
from hebm_sample.metrics.classifiers import train_feature_net
from hebm_sample.metrics.features import (
    FeatureNet,
    PcaFeatures,
    extract,
    load_extractor,
    save_extractor,
)
from hebm_sample.metrics.frechet import (
    FeatureStatistics,
    GapMeasurement,
    frechet_distance,
    frechet_standard_error,
    gap_closed,
    jackknife_standard_error,
    measure_gap,
)
from hebm_sample.metrics.inception import InceptionFeatures
from hebm_sample.metrics.kernel import gaussian_kernel, kernel_distance, mmd_squared
from hebm_sample.metrics.memorisation import Memorisation, measure_memorisation
from hebm_sample.metrics.neighbours import Neighbourhoods, nearest, neighbourhoods
from hebm_sample.metrics.prior_hole import PriorHole, measure_prior_hole, two_sample_accuracy
from hebm_sample.metrics.quality import Quality, measure_quality, measure_to_reference
from hebm_sample.metrics.statistics import Figure, auroc

__all__ = [
    "FeatureNet",
    "FeatureStatistics",
    "Figure",
    "GapMeasurement",
    "PriorHole",
    "InceptionFeatures",
    "AttributeClassifier",
    "Memorisation",
    "Neighbourhoods",
    "PcaFeatures",
    "Quality",
    "Predictions",
    "accuracies",
    "auroc",
    "extract",
    "frechet_distance",
    "frechet_standard_error",
    "gap_closed",
    "gaussian_kernel",
    "jackknife_standard_error",
    "kernel_distance",
    "load_extractor",
    "load_attribute_classifier",
    "measure_gap",
    "measure_prior_hole",
    "measure_memorisation",
    "measure_quality",
    "measure_to_reference",
    "mmd_squared",
    "nearest",
    "neighbourhoods",
    "save_extractor",
    "save_attribute_classifier",
    "train_feature_net",
    "train_attribute_classifier",
    "two_sample_accuracy",
]

# What needs a model has moved; the names that earlier documentation showed are still found here.
_MOVED = {
    "EvaluationSet": "evaluation.reference",
    "acceptance": "evaluation.mcmc",
    "check_steps": "evaluation.mcmc",
    "corruptions": "evaluation.ood",
    "diagnose_levels": "evaluation.mcmc",
    "find_set": "evaluation.reference",
    "png_bytes": "evaluation.ood",
    "top_group_energies": "evaluation.ood",
    "traces_from": "evaluation.mcmc",
}


# Names of before.
_RENAMED = {
    "Hole": "PriorHole",
    "JudgeNet": "AttributeClassifier",
    "Verdict": "Predictions",
    "load_judge": "load_attribute_classifier",
    "measure_hole": "measure_prior_hole",
    "save_judge": "save_attribute_classifier",
    "train_judge": "train_attribute_classifier",
}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        return globals()[_RENAMED[name]]
    if name in _MOVED:
        return getattr(importlib.import_module(f"hebm_sample.{_MOVED[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
