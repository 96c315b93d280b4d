"""How good are the pictures, do they show what was asked, and what do the latents say?

Distances, their errors and the spaces to take them in; judges; memorisation; the prior hole;
strange pictures; the chains.
"""

from hebm_sample.metrics.classifier import train_feature_net
from hebm_sample.metrics.diagnostics import acceptance, check_steps, diagnose_levels, traces_from
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
from hebm_sample.metrics.hole import Hole, measure_hole, two_sample_accuracy
from hebm_sample.metrics.inception import InceptionFeatures
from hebm_sample.metrics.judge import (
    JudgeNet,
    Verdict,
    accuracies,
    load_judge,
    save_judge,
    train_judge,
)
from hebm_sample.metrics.kernel import gaussian_kernel, kernel_distance, mmd_squared
from hebm_sample.metrics.memorisation import Memorisation, measure_memorisation
from hebm_sample.metrics.neighbours import Neighbourhoods, nearest, neighbourhoods
from hebm_sample.metrics.ood import corruptions, png_bytes, top_group_energies
from hebm_sample.metrics.quality import Quality, measure_quality, measure_to_reference
from hebm_sample.metrics.ranks import Figure, auroc
from hebm_sample.metrics.reference import EvaluationSet, find_set

__all__ = [
    "EvaluationSet",
    "FeatureNet",
    "FeatureStatistics",
    "Figure",
    "GapMeasurement",
    "Hole",
    "InceptionFeatures",
    "JudgeNet",
    "Memorisation",
    "Neighbourhoods",
    "PcaFeatures",
    "Quality",
    "Verdict",
    "acceptance",
    "accuracies",
    "auroc",
    "check_steps",
    "corruptions",
    "diagnose_levels",
    "extract",
    "find_set",
    "frechet_distance",
    "frechet_standard_error",
    "gap_closed",
    "gaussian_kernel",
    "jackknife_standard_error",
    "kernel_distance",
    "load_extractor",
    "load_judge",
    "measure_gap",
    "measure_hole",
    "measure_memorisation",
    "measure_quality",
    "measure_to_reference",
    "mmd_squared",
    "nearest",
    "neighbourhoods",
    "png_bytes",
    "save_extractor",
    "save_judge",
    "top_group_energies",
    "traces_from",
    "train_feature_net",
    "train_judge",
    "two_sample_accuracy",
]
