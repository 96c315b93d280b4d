"""NVAE's checkpoints: what is read of the file, and what it says of the architecture.

The file is a `torch.save` of a dictionary: `state_dict`, `args` (an `argparse.Namespace`),
`arch_instance` (operations of the cells by role), and what only training needs. It is read by
`pickles.py`, without running anything in it.
"""

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hebm_sample.config import ModelConfig, NvaeConfig
from hebm_sample.errors import UserInputError
from hebm_sample.generator.nvae.encoder import NvaeEncoder
from hebm_sample.generator.nvae.hierarchy import NvaeGenerator
from hebm_sample.hub.card import model_card
from hebm_sample.hub.manifest import ModelRow, check_name
from hebm_sample.hub.save import check_new_model, check_sizes, licence_of, write_model_folder
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.io.files import short
from hebm_sample.training.imports.nvae_weights import check_room, fill
from hebm_sample.training.imports.pickles import check_file, named, unpickle, within_memory

__all__ = ["Imported", "import_nvae", "load_nvae", "read_checkpoint", "read_config"]

SIZES = {"cifar10": 32, "ffhq": 256}  # others have their size in their name
DATASETS = (
    "cifar10, celeba_64, celeba_256, imagenet_32, imagenet_64, ffhq, lsun_bedroom_128, "
    "lsun_bedroom_256, lsun_church_64 and lsun_church_128"
)
FILES = ("generator.safetensors", "encoder.safetensors")
PARTS = ("state_dict", "args", "arch_instance")  # what is read of the file
# Added to NVAE later: what a checkpoint without them meant.
DEFAULTS = {"ada_groups": False, "min_groups_per_scale": 1, "num_mixture_dec": 10, "num_nf": 0}
ARGUMENTS = {
    "latent_channels": "num_latent_per_group",
    "encoder_width": "num_channels_enc",
    "decoder_width": "num_channels_dec",
    "blocks": "num_preprocess_blocks",
    "preprocess_cells": "num_preprocess_cells",
    "postprocess_cells": "num_postprocess_cells",
    "encoder_cells": "num_cell_per_cond_enc",
    "decoder_cells": "num_cell_per_cond_dec",
    "flows": "num_nf",
    "squeeze_excitation": "use_se",
    "residual_posterior": "res_dist",
    "mixtures": "num_mixture_dec",
    "bits": "num_x_bits",
}
NOTES = """
## Where it comes from

Imported from a checkpoint of [NVAE](https://arxiv.org/abs/2007.03898), trained on {dataset}, with
`hebm-train import-nvae`. Batch norm and weight norm are folded into the weights; u = (z - mu) /
sigma of NVAE's own prior. NVAE's licence allows non-commercial use only, and so do these weights.
"""


class Imported(NamedTuple):
    """A checkpoint's networks."""

    config: NvaeConfig
    generator: NvaeGenerator
    encoder: NvaeEncoder
    dataset: str


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """State dictionary, arguments and cells of a file, without running anything in it.

    Raises:
        UserInputError: There is no such file, it is broken or no checkpoint of NVAE, or it holds
            what could run code.
        EnvironmentFailure: torch is too old to read it safely, or the disk fails.
    """
    data = unpickle(path)
    found: dict[Any, Any] = data if isinstance(data, dict) else {}
    parts: list[Any] = [found.get(part) for part in PARTS]
    state, arguments, cells = parts
    fits = isinstance(state, dict) and isinstance(arguments, argparse.Namespace)
    if not fits or not isinstance(cells, dict):
        order = sorted(found, key=lambda key: (named(key) not in PARTS, named(key)))
        kinds = {named(key): type(found[key]).__name__ for key in order}
        raise UserInputError(
            f"{path} holds {short(kinds) if found else type(data).__name__}; a checkpoint of NVAE "
            "has state_dict (a dictionary), args (a namespace) and arch_instance (a dictionary)"
        )
    return state, DEFAULTS | vars(arguments), cells


def _image_size(dataset: object) -> int:
    known = isinstance(dataset, str) and dataset in re.split(r", | and ", DATASETS)
    if not known:
        raise UserInputError(
            f"the checkpoint is of dataset {short(dataset)}; supported are the colour images of "
            f"{DATASETS}"
        )
    name = str(dataset)
    return SIZES.get(name) or int(name.rpartition("_")[2])


def _count(arguments: dict[str, Any], name: str) -> int:
    value = arguments[name]
    if type(value) is not int or not 1 <= value <= 128:
        raise UserInputError(f"the checkpoint's {name} is {short(value)}; it can be 1 to 128")
    return value


def _groups(arguments: dict[str, Any]) -> tuple[int, ...]:
    """Groups of each scale, coarse to fine; adaptive schedules halve them from scale to scale."""
    names = ("num_latent_scales", "num_groups_per_scale", "min_groups_per_scale")
    scales, count, least = (_count(arguments, name) for name in names)
    adaptive = arguments["ada_groups"]
    if type(adaptive) is not bool:
        raise UserInputError(
            f"the checkpoint's args.ada_groups is {short(adaptive)}; it must be of type bool"
        )
    found = [count]
    for _ in range(scales - 1):
        found.append(max(least, found[-1] // 2) if adaptive else count)
    return tuple(reversed(found))


def read_config(arguments: dict[str, Any], cells: dict[str, Any]) -> NvaeConfig:
    """The architecture that NVAE's arguments describe.

    Arguments:
        arguments: Of NVAE's training, by name.
        cells: Operations by role; `ar_nn` is the flows' and says nothing.

    Raises:
        UserInputError: One is missing, or asks for what is not supported.
    """
    needed = {"dataset", "num_latent_scales", "num_groups_per_scale", "num_postprocess_blocks"}
    missing = sorted((needed | set(ARGUMENTS.values())) - set(arguments))
    if missing:
        raise UserInputError(f"the checkpoint's args lack {', '.join(missing)}; it is no NVAE")
    size = _image_size(arguments["dataset"])
    ends = [_count(arguments, f"num_{end}process_blocks") for end in ("pre", "post")]
    if ends[0] != ends[1]:
        raise UserInputError(
            f"the checkpoint has {ends[0]} preprocessing and {ends[1]} postprocessing blocks; the "
            "two must be equal"
        )
    values = {ours: arguments[theirs] for ours, theirs in ARGUMENTS.items()}
    roles = {named(k): v for k, v in cells.items() if named(k) != "ar_nn"}
    described = {"image_size": size, "groups": list(_groups(arguments)), "cells": roles, **values}
    try:
        return NvaeConfig.from_dict(described, "the checkpoint's args")
    except UserInputError as error:
        raise UserInputError(_in_their_names(str(error))) from error


def _in_their_names(message: str) -> str:
    """What is said of a field of ours, said of NVAE's argument."""
    names = ARGUMENTS | {"groups": "num_groups_per_scale"}
    pattern = rf"\b({'|'.join(names)}) is "
    found = re.sub(pattern, lambda match: f"{names[match[1]]} is ", message, count=1)
    return found.replace("args.cells", "arch_instance")


@usual_defaults()
def load_nvae(path: str | Path, *, stored: bool = False) -> Imported:
    """A checkpoint's networks in float32 on the CPU. Errors as `read_checkpoint`'s and
    `read_config`'s.

    Arguments:
        stored: Refuse networks that no folder of a model can hold before they are made.
    """
    path = Path(path)
    state, arguments, cells = read_checkpoint(path)
    try:
        config = read_config(arguments, cells)
        with torch.device("meta"):
            networks = NvaeGenerator(config), NvaeEncoder(config)
        check_room(networks, state)
        if stored:
            check_sizes(dict(zip(FILES, networks, strict=True)), torch.float32)
    except UserInputError as error:
        raise UserInputError(f"{path}: {error}") from error
    with torch.random.fork_rng(devices=[]), torch.no_grad(), within_memory(path):
        generator, encoder = fill(config, state, str(path))
    return Imported(config, generator, encoder, arguments["dataset"])


def _check_request(
    path: Path, folder: Path, name: str | None, energies: str | Path | None, overwrite: bool
) -> None:
    """Before a checkpoint of gigabytes is read, what is refused without it."""
    check_new_model(folder, overwrite)
    if name is not None:
        check_name(name)
    check_file(path)
    if energies is not None:
        check_file(Path(energies))


def import_nvae(
    path: str | Path,
    folder: str | Path,
    *,
    name: str | None = None,
    energies: str | Path | None = None,
    overwrite: bool = False,
) -> ModelRow:
    """Write a checkpoint of NVAE as a model folder, in float32; returns its manifest row.

    Arguments:
        path: The `torch.save` of NVAE's training.
        folder: The model's folder; untouched if the checkpoint is refused.
        name: The model's; `nvae-DATASET` if None.
        energies: A file of the authors' release that was trained on it
            (`release_checkpoint.py`); no prior if None.
        overwrite: Replace a model that is in `folder`.

    Raises:
        UserInputError: There is no such file, it is broken, does not fit its own arguments, or is
            no checkpoint that is supported; the folder is taken, or no model can be there; or
            `name` can be none.
        EnvironmentFailure: torch is too old to read it safely, the disk fails, or there is too
            little memory.
    """
    _check_request(Path(path), Path(folder), name, energies, overwrite)
    found = load_nvae(path, stored=True)
    config = ModelConfig(f"nvae-{found.dataset}" if name is None else name, found.config)
    prior = None
    if energies is not None:
        from hebm_sample.training.imports.release_checkpoint import load_energies

        with within_memory(Path(energies)):
            described, sampling, prior = load_energies(energies, found.config)
        config = replace(config, prior=described, sampling=sampling)
    licence = licence_of(config)
    return write_model_folder(
        Path(folder),
        config,
        found.generator,
        prior,
        found.encoder,
        dtype=torch.float32,
        licence=licence,
        card=model_card(
            config, licence=licence, figures={}, notes=NOTES.format(dataset=found.dataset)
        ),
        overwrite=overwrite,
    )
