"""What can go wrong, in words a user can act on.

Every public error says what was asked, what exists and what to do, in one line. `exit_code` is
what the commands leave with: 2 when what was typed is wrong, 1 when the surroundings fail
(network, disk, corrupt file).
"""

__all__ = [
    "EnvironmentFailure",
    "HebmError",
    "HubError",
    "NonFiniteSampleError",
    "TrainingDivergedError",
    "UserInputError",
    "WeightsError",
    "short",
]


def short(value: object) -> str:
    """A stranger's value for an error message: one line of ASCII, at most 120 characters."""
    try:
        shown = " ".join(ascii(value).splitlines())  # of tensors there are several
    except RecursionError:
        shown = f"a nested {type(value).__name__}"
    except Exception:  # as of whole numbers of more than 4300 digits
        shown = f"a value of type {type(value).__name__} that cannot be shown"
    return shown if len(shown) <= 120 else shown[:117] + "..."


class HebmError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code: int = 1


class UserInputError(HebmError, ValueError):
    """What was asked for cannot be done as asked: an unknown name, a value out of range, a wrong
    shape.
    """

    exit_code = 2


class EnvironmentFailure(HebmError):
    """The surroundings failed: a missing extra, a disk that is full or read-only, a device that is
    absent.
    """


class WeightsError(EnvironmentFailure):
    """A model's files are missing, corrupt or do not fit their own description."""


class HubError(EnvironmentFailure):
    """The Hub, or the way to it, did not deliver."""


class NonFiniteSampleError(HebmError):
    """A chain left the finite numbers, or the range of anything that could be a sample. Names the
    seeds, the level and the step.

    Arguments:
        seeds: The seeds whose chains did.
        level: The noise level t at which it was noticed.
        step: Gradient evaluations done when it was noticed.
        fault: What the sample became.
    """

    def __init__(self, seeds: list[int], level: int, step: int, fault: str = "non-finite") -> None:
        self.seeds, self.level, self.step = seeds, level, step
        shown = ", ".join(map(str, seeds[:8])) + (", ..." if len(seeds) > 8 else "")
        super().__init__(
            f"the sample of seed {shown} became {fault} at level {level}, step {step}; "
            "use float32, less guidance, fewer or smaller steps (step_scale), or another model"
        )


class TrainingDivergedError(HebmError):
    """Too many non-finite training steps in a row; the last good checkpoint is kept."""
