"""How good are the pictures: Fréchet distances, their errors, and spaces to take them in."""

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

__all__ = [
    "FeatureNet",
    "FeatureStatistics",
    "GapMeasurement",
    "PcaFeatures",
    "extract",
    "frechet_distance",
    "frechet_standard_error",
    "gap_closed",
    "jackknife_standard_error",
    "load_extractor",
    "measure_gap",
    "save_extractor",
    "train_feature_net",
]
