"""What a run ends with: a model in `FOLDER/model`, written once.

Whoever owns the model may edit its card, calibrate it or change its crop: a run that is resumed
when it has ended leaves it as it is.
"""

from pathlib import Path

from hebm_sample.errors import UserInputError
from hebm_sample.hub.manifest import MANIFEST_NAME
from hebm_sample.hub.save import check_new_model
from hebm_sample.training.checkpoint import latest_checkpoint, read_state

__all__ = ["check_model_place", "has_ended"]


def has_ended(folder: Path, result: str = f"model/{MANIFEST_NAME}") -> bool:
    """Whether the run's newest whole checkpoint is of its end, and its result is there.

    Arguments:
        result: The file that tells, below the run's folder.
    """
    path = latest_checkpoint(folder) if (folder / result).is_file() else None
    if path is None:
        return False
    state = read_state(path)
    return state.get("finished", state["step"] == state["total"])


def check_model_place(folder: Path) -> bool:
    """Before the run, not after hours of it: that its model can be written; whether it is there
    already, because the run has ended.

    Raises:
        UserInputError: `FOLDER/model` holds another model, or files of others, or is a file or
            another run's folder.
    """
    if has_ended(folder):
        return True
    model = folder / "model"
    if (model / MANIFEST_NAME).exists():
        raise UserInputError(
            f"{model} holds a model already, and the run would write its own there; move it away, "
            "or choose another folder"
        )
    if folder.is_dir():  # else nothing is in the model's place
        check_new_model(model, overwrite=True)
    return False
