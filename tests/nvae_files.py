"""Checkpoints of NVAE as its training saves them, made from the numbers in `tests/nvae`."""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "nvae"
NAMES = ("cifar10-one-scale", "celeba64-three-scales", "normal-head-5-bits")
TEMPERATURE = 0.7


def checkpoint(name: str) -> dict:
    """What `torch.save` is given. Each call returns new objects, to be changed at will."""
    described = json.loads((FOLDER / f"{name}.json").read_text())
    weights = load_file(FOLDER / f"{name}.weights.safetensors")
    state = {}
    for key, value in weights.items():
        state[key] = value
        if key.endswith("running_var"):
            state[key.replace("running_var", "num_batches_tracked")] = torch.tensor(1)
        bare = key.endswith(".weight") and value.ndim == 4
        if bare and key.replace("weight", "log_weight_norm") not in weights:
            state[f"{key}_normalized"] = value  # NVAE's convolutions without weight norm
    return {
        "epoch": 1,
        "state_dict": state,
        "optimizer": {},
        "global_step": 1,
        "args": argparse.Namespace(**described["args"]),
        "arch_instance": described["arch_instance"],
        "scheduler": {},
        "grad_scalar": {},
    }


def write_checkpoint(name: str, path: Path, **arguments) -> Path:
    """The file, with some of its arguments changed."""
    data = checkpoint(name)
    vars(data["args"]).update(arguments)
    torch.save(data, path)
    return path


def expected(name: str) -> dict[str, torch.Tensor]:
    """What NVAE computed."""
    return load_file(FOLDER / f"{name}.expected.safetensors")


def noise(found: dict[str, torch.Tensor], kind: str) -> tuple[torch.Tensor, ...]:
    """`posterior` or `prior` noise of an expectation, a tensor per group."""
    count = sum(key.startswith(f"{kind}_noise.") for key in found)
    return tuple(found[f"{kind}_noise.{i}"] for i in range(count))
