"""From a verified model folder to modules."""

import os
from collections.abc import Generator as Yields
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from hebm_sample.config import ModelConfig
from hebm_sample.errors import UserInputError, WeightsError
from hebm_sample.generator.kinds import new_encoder, new_generator
from hebm_sample.generator.protocol import Generator, ImageEncoder
from hebm_sample.hub.manifest import CALIBRATION_NAME, MAX_CALIBRATION_BYTES
from hebm_sample.hub.resolve import ResolvedModel, locate
from hebm_sample.hub.sizes import check_room
from hebm_sample.hub.weights import load_weights
from hebm_sample.io.files import parse_json
from hebm_sample.prior.joint import JointEnergy

if TYPE_CHECKING:
    from hebm_sample.metrics.typicality import Calibration

__all__ = [
    "LoadedModel",
    "build_model",
    "load_calibration",
    "load_encoder",
    "new_prior",
    "read_config",
]

MAX_CONFIG_BYTES = 1_000_000
MAX_MESSAGE = 500


@dataclass(frozen=True)
class LoadedModel:
    """A model's parts on the CPU; `load_encoder` reads the encoder when it is needed."""

    resolved: ResolvedModel
    config: ModelConfig
    generator: Generator
    prior: JointEnergy | None


def read_config(resolved: ResolvedModel) -> ModelConfig:
    """The model's `config.json`, checked; `WeightsError` names the file and what is wrong with
    it.
    """
    data, where = _small(resolved, "config.json", MAX_CONFIG_BYTES)
    try:
        return ModelConfig.from_dict(parse_json(data))
    except (UserInputError, ValueError, RecursionError) as error:
        fault = _shortened(str(error))
        raise WeightsError(f"{where} is not a description of a model: {fault}") from error


def _small(resolved: ResolvedModel, filename: str, limit: int) -> tuple[bytes, str]:
    """(a file's bytes, its path in words), `limit` bytes at most."""
    where = str(resolved.place(filename))
    row = resolved.row.files.get(filename)
    if row is not None and row.size > limit:
        raise WeightsError(f"{where} has more than {limit} bytes, the most that is read")
    return resolved.read(filename), where


def _shortened(fault: str) -> str:
    """It may quote a stranger's values, of any length."""
    return fault if len(fault) <= MAX_MESSAGE else fault[: MAX_MESSAGE - 3] + "..."


def load_calibration(resolved: ResolvedModel) -> "Calibration | None":
    """The model's `calibration.json`, checked; None for a model without one.

    Raises:
        WeightsError: The file is corrupt or is no calibration.
    """
    from hebm_sample.metrics.typicality import Calibration

    if CALIBRATION_NAME not in resolved.row.files:
        return None
    data, where = _small(resolved, CALIBRATION_NAME, MAX_CALIBRATION_BYTES)
    try:
        return Calibration.from_dict(parse_json(data))
    except (UserInputError, ValueError, RecursionError) as error:
        raise WeightsError(f"{where}: {_shortened(str(error))}") from error


def new_prior(config: ModelConfig) -> JointEnergy:
    """Untrained energies of a config that has a prior: exactly N(0, I)."""
    assert config.prior is not None
    return JointEnergy(config.prior, config.generator.latent_shapes, config.generator.state_shapes)


@torch.inference_mode(False)  # else the weights could never be differentiated through
def build_model(
    name: str | os.PathLike[str],
    *,
    resolution: int | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> LoadedModel:
    """Find, check and load generator and prior. Arguments and errors as `resolve`'s.

    Each file is read once, and what is loaded are the bytes that were checked.
    """
    resolved = locate(
        name,
        resolution=resolution,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
    )
    config = read_config(resolved)
    if CALIBRATION_NAME in resolved.row.files:
        resolved.path(CALIBRATION_NAME)
    parts = ("generator", "prior") if config.prior is not None else ("generator",)
    _check_rooms(resolved, config, *parts)
    with _own_random_state():
        generator = new_generator(config.generator)
        prior = new_prior(config) if config.prior is not None else None
    _fill(generator, resolved, "generator.safetensors")
    if prior is not None:
        _fill(prior, resolved, "prior.safetensors")
    return LoadedModel(resolved, config, generator, prior)


def _check_rooms(resolved: ResolvedModel, config: ModelConfig, *parts: str) -> None:
    for name in (f"{part}.safetensors" for part in parts):
        if name not in resolved.row.files:
            resolved.path(name)  # raises, with the files that it has
        check_room(config, resolved.place(name), resolved.row.files[name].size)


def _fill(module: nn.Module, resolved: ResolvedModel, filename: str) -> None:
    load_weights(module, resolved.place(filename), data=resolved.read(filename))


@contextmanager
def _own_random_state() -> Yields[None]:
    """Initial weights are drawn and then overwritten: the caller's streams must not notice, and
    the caller's default device is none of theirs.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # pyright: ignore
        yield


@torch.inference_mode(False)  # else the weights could never be differentiated through
def load_encoder(resolved: ResolvedModel, config: ModelConfig) -> ImageEncoder:
    """The model's encoder, its file checked now; `UserInputError` for a model that has none."""
    if "encoder.safetensors" not in resolved.row.files:
        raise UserInputError(
            f"{config.name} has no encoder, so it cannot read images; use a model that has one"
        )
    _check_rooms(resolved, config, "encoder")
    with _own_random_state():
        encoder = new_encoder(config.generator)
    _fill(encoder, resolved, "encoder.safetensors")
    return encoder
