"""Randomness and loops: the Langevin step, noise streams and the samplers. No networks."""

from hebm_sample.sampling.chain import run_chain
from hebm_sample.sampling.langevin import StepInfo, langevin_step
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.sampling.sample import sample_prior
from hebm_sample.sampling.state import LevelState

__all__ = ["LevelState", "NoiseStreams", "StepInfo", "langevin_step", "run_chain", "sample_prior"]
