"""Where to compute."""

import torch

from hebm_sample.errors import EnvironmentFailure, UserInputError

__all__ = ["pick_device"]


def pick_device(device: str | torch.device) -> torch.device:
    """The device named; "auto" is CUDA where there is one, else the CPU.

    "mps", the GPU of a Mac, has to be asked for: `auto` takes what the tests have run on.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserInputError(
            f"device {device!r} does not exist; use auto, cpu, cuda or mps"
        ) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFailure(
            f"device {device!r} was asked for, but this torch sees no CUDA GPU; use cpu or auto"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise EnvironmentFailure(
            f"device {device!r} was asked for, but this torch sees no GPU of a Mac (macOS on "
            "Apple silicon has one); use cpu or auto"
        )
    return chosen
