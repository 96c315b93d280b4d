"""What a run's `state.json` says of it, for the model's `config.json`."""

from collections.abc import Mapping
from typing import Any

from hebm_sample.config import TrainingRecord

__all__ = ["record_of"]

UNKNOWN = "0000-00-00"  # dates in checkpoints that older releases wrote


def record_of(state: Mapping[str, Any]) -> TrainingRecord:
    """The record of a run's part.

    Arguments:
        state: As a checkpoint of the run holds it (`checkpoint.read_state`).
    """
    identity = state["identity"]
    batch, best = identity["settings"]["batch_size"], state.get("best")
    return TrainingRecord(
        identity["kind"],
        images=state["step"] * batch * identity["processes"],
        steps=state["step"],
        seconds=round(float(state["seconds"]), 1),
        started=state.get("started", UNKNOWN),
        ended=state.get("ended", UNKNOWN),
        kept=best["step"] if best else state["step"],
        image_size=identity["config"]["generator"]["image_size"],
    )
