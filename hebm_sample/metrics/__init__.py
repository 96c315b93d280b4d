"""How good are the pictures, and do they show what was asked: Fréchet distances, their errors,
spaces to take them in; and judges.
"""

from hebm_sample.metrics.classifier import train_feature_net
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
from hebm_sample.metrics.judge import (
    JudgeNet,
    Verdict,
    accuracies,
    load_judge,
    save_judge,
    train_judge,
)

__all__ = [
    "FeatureNet",
    "FeatureStatistics",
    "GapMeasurement",
    "JudgeNet",
    "PcaFeatures",
    "Verdict",
    "accuracies",
    "extract",
    "frechet_distance",
    "frechet_standard_error",
    "gap_closed",
    "jackknife_standard_error",
    "load_extractor",
    "load_judge",
    "measure_gap",
    "save_extractor",
    "save_judge",
    "train_feature_net",
    "train_judge",
]
