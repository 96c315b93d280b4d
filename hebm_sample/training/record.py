"""What a run's `state.json` says of it, for the model's `config.json`, and what follows from that:
which rows of a data set a model was not trained on, and what a run may start from.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from hebm_sample.config import GeneratorConfig, PriorConfig, TrainingRecord
from hebm_sample.data.holdout import SEED
from hebm_sample.data.images import ImageDataset
from hebm_sample.errors import UserInputError
from hebm_sample.hub.load import new_prior
from hebm_sample.hub.manifest import MANIFEST_NAME, read_row
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.preset import Preset

__all__ = [
    "BASE",
    "base_of",
    "check_base",
    "check_generator",
    "check_prior",
    "check_rows",
    "former_digest",
    "held_out_rule_of",
    "record_of",
    "records_of_energies",
    "records_of_generator",
    "same_rows",
    "trained_on",
]

BASE = "generator"  # in a run's folder: the model that it began with
UNKNOWN = "0000-00-00"  # of checkpoints that older releases wrote
_ROWS = re.compile(r"([^\[]*)\[(\d+):(\d+)\]")  # of an identity: the set's, first row, end


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
        kl_weights=_kl_weights(identity),
        note=_how(state),
        **_rows_of(identity),
    )


def _how(state: Mapping[str, Any]) -> str:
    """What of a step's rounding a record says: its type, unless float32, and from which step on
    it was compiled, as far as checkpoints tell.
    """
    dtype = state["identity"]["settings"].get("dtype", "float32")
    notes = [] if dtype == "float32" else [f"in {dtype}"]
    for step, compiled in state.get("compiled", []):
        if compiled or step:
            since = f" from step {step} on" if step else ""
            notes.append(f"{'' if compiled else 'not '}compiled{since}")
    return ", ".join(notes)[:300]


def _kl_weights(identity: Mapping[str, Any]) -> tuple[float, ...]:
    """As the identity of a generator's run ends with them: one number, or one per group."""
    text = identity["data"].rpartition(" kl_weight=")[2]
    generator = identity["config"]["generator"]
    grown = generator.get("encoder_size") not in (None, generator["image_size"])  # T was frozen
    if identity["kind"] != "generator" or grown or text == identity["data"]:
        return ()
    found = json.loads(text)
    groups = sum(scale["groups"] for scale in generator["scales"])
    return tuple(found) if isinstance(found, list) else (float(found),) * groups


def _rule_of(validation: int | None) -> str:
    return "hash" if validation is None else f"last:{validation}" if validation else "none"


def _rows_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Which rows a run is trained on: its data begin with their identity."""
    rows = identity["settings"].get("validation")
    return {
        "data": identity["data"].split(" ")[0],
        "held_out": _rule_of(rows),
        "held_out_seed": SEED,
    }


def base_of(run: Path) -> str:
    """What tells the model that a run began with from others, by the bytes of its files, which
    are checked where it is loaded; "" for none.

    Raises:
        WeightsError: Its manifest cannot be read.
    """
    folder = run / BASE
    if not (folder / MANIFEST_NAME).exists():
        return ""
    files = sorted((name, file.sha256) for name, file in read_row(folder).files.items())
    return hashlib.sha256(repr(files).encode()).hexdigest()


def check_base(run: Path, state: Mapping[str, Any]) -> None:
    """`UserInputError` if the folder holds another model than the one that the run began with, as
    far as its checkpoints say.
    """
    if state.get("base", base_of(run)) != base_of(run):
        there = "put that one there again" if state["base"] else "it began with none: remove it"
        raise UserInputError(f"{run / BASE} is not the model that the run began with; {there}")


def _known(records: Sequence[TrainingRecord], size: int) -> list[TrainingRecord]:
    """Records that say which rows of images of that size were trained on."""
    return [r for r in records if r.data and r.image_size == size]


def records_of_energies(model: Pipeline, init: Pipeline | None) -> tuple[TrainingRecord, ...]:
    """What the parts that energies begin with have seen: not `model`'s own energies, but those
    that they start from.
    """
    begun = () if init is None else init.config.training
    kept = [r for r in model.config.training if r.part != "prior"]
    return (*kept, *(r for r in begun if r.part == "prior"))


def records_of_generator(
    begun: Sequence[TrainingRecord], *, prior: bool
) -> tuple[TrainingRecord, ...]:
    """What the parts of a generator have seen that begins with a model of these records: no sharp
    decoder, which is trained anew, and energies where they stay (`prior`).
    """
    gone = ("decoder",) if prior else ("decoder", "prior")
    return tuple(r for r in begun if r.part not in gone)


def same_rows(
    model: str,
    records: Sequence[TrainingRecord],
    training: ImageDataset,
    validation: int | None | Literal[""] = "",
) -> None:
    """`UserInputError` if a part was trained on other rows of the very data that the next part is
    to be trained on: then no rows would be held out of both.

    Arguments:
        validation: The rule by which rows are held out, of images of another size than the parts
            saw: another one than theirs is said in a warning, since nothing tells whether these
            are the same data.
    """
    if validation != "":
        rule = _rule_of(validation)
        for record in records:
            if record.data and record.image_size != training.images.shape[-1]:
                if record.held_out != rule:
                    warnings.warn(_untold(model, record), stacklevel=3)
    for record in _known(records, training.images.shape[-1]):
        if record.data != training.identity and _set(record.data) == _set(training.identity):
            raise UserInputError(
                f"{model}'s {record.part} was trained on other rows of these data "
                f"(held out: {record.held_out}); no rows would be held out of both parts: "
                f"give --validation {_typed(record)}"
            )


def held_out_rule_of(records: Sequence[TrainingRecord], size: int) -> str | int | None:
    """What `--validation` has to be for the rows that the runs held out: "hash", N, or 0 for none;
    None where nothing is known. The last part's, which has to agree with the others.
    """
    known = _known(records, size)
    if not known:
        return None
    text = _typed(known[-1])
    return text if text == "hash" else int(text.removeprefix("last:"))


def _typed(record: TrainingRecord) -> str:
    return "0" if record.held_out == "none" else record.held_out


def _set(identity: str) -> str:
    return identity.partition("[")[0]


def _beyond(trained: str, held_out: str) -> bool:
    """Whether both are ranges of one set's rows, and the latter begins where the former ends."""
    ranges = [_ROWS.match(identity) for identity in (trained, held_out)]  # parts of them, too
    return all(ranges) and int(ranges[0][3]) <= int(ranges[1][2])  # pyright: ignore


def trained_on(data: str, training: str, held_out: str) -> bool:
    """Whether rows that count as held out were trained on, as far as identities tell.

    Arguments:
        data: Identity of the rows that were trained on.
        training, held_out: Of those that are now taken to be.
    """
    same = bool(data) and _set(data) == _set(held_out)
    return same and data != training and not _beyond(data, held_out)


def check_rows(
    model: str,
    records: Sequence[TrainingRecord],
    training: ImageDataset,
    held_out: ImageDataset,
    *,
    generator: bool = True,
) -> str:
    """What is known of held-out rows, in words; empty where no part of the model was trained on
    them.

    Arguments:
        model: Its name, for messages.
        records: Of its training, as its config has them.
        training, held_out: As they are now taken to be.
        generator: Whether a generator without a record is said to have none; not of a prior alone.

    Raises:
        UserInputError: A part was trained on rows of the same data that are now held out.
    """
    known = _known(records, held_out.images.shape[-1])
    if not known:
        return f"{model} does not say which rows it was trained on"
    notes = [
        f"{model} does not say which rows its {part} was trained on"
        for part in _silent(records, generator)
    ]
    notes += [_untold(model, record) for record in records if _other_rule(record, known)]
    for record in known:
        if trained_on(record.data, training.identity, held_out.identity):
            raise UserInputError(
                f"{model}'s {record.part} was trained with other rows held out of these data "
                f"({record.held_out}): some of the {len(held_out)} rows that would count as "
                f"held out were trained on; give --validation {_typed(record)}, or leave it "
                "out"
            )
        if _set(record.data) not in (_set(held_out.identity), _set(training.identity)):
            notes.append(f"these are not the data that {model} was trained on, as they were then")
    return "; ".join(dict.fromkeys(notes))


def _silent(records: Sequence[TrainingRecord], generator: bool) -> list[str]:
    """Parts of which nothing says what they were trained on, such as the generator of an earlier
    release, on which new energies were trained.
    """
    parts = dict.fromkeys(r.part for r in records if not r.data)
    untold = generator and all(r.part != "generator" for r in records)
    return [*(["generator"] if untold else []), *parts]


def _other_rule(record: TrainingRecord, known: Sequence[TrainingRecord]) -> bool:
    """Whether a part that saw images of another size held out rows by another rule than those
    that saw images of this one. Rules are of names and numbers, so the same rule at another size
    means the same rows.
    """
    rules = [(r.held_out, r.held_out_seed) for r in known]
    sizes = [r.image_size for r in known]
    if not record.data or record.image_size in sizes:
        return False
    return (record.held_out, record.held_out_seed) not in rules


def _untold(model: str, record: TrainingRecord) -> str:
    return (
        f"{model}'s {record.part} was trained at {record.image_size} pixels with other rows held "
        f"out ({record.held_out}), and may have seen some of those held out here"
    )


def check_generator(preset: Preset, init: Pipeline | None) -> None:
    """Before the data are read: `UserInputError` for an `init` that the preset's generator can
    neither go on from nor grow from, or none where the preset is to grow.
    """
    if init is None:
        if preset.grown_from:
            raise UserInputError(
                f"preset {preset.name} trains an image decoder on what another model has learned; "
                f"give that model with --init, such as a run of preset {preset.grown_from}"
            )
        return
    init.encoder  # noqa: B018  one line now if there is none
    described = init.config.generator
    if isinstance(described, GeneratorConfig):
        described = described.without_sharp_decoder
    if described != preset.generator and not preset.generator.grows_from(init.config.generator):
        raise UserInputError(
            f"{init.name} has another architecture than preset {preset.name}, and is not what it "
            "grows from; use its own preset"
        )


def check_prior(
    preset: Preset, model: Pipeline | None, objective: str, init: Pipeline | None
) -> None:
    """Before the data are read: `UserInputError` for a model without an encoder, an objective that
    the preset's energies cannot be trained with, or an `init` with others. Without a model, what
    can be said without one.
    """
    if model is not None:
        model.encoder  # noqa: B018  one line now if there is none
    config, same = preset.prior, {"symbols": ()}
    if objective == "score" and config.parametrization != "log_snr":
        raise UserInputError(
            "objective 'score' needs energies at every noise level; use parametrization log_snr"
        )
    if objective == "mle" and preset.prior_settings.patience:
        raise UserInputError(
            f"patience is {preset.prior_settings.patience}, but objective 'mle' has no held-out "
            "figure that says when to end; set it to 0 (--set settings.patience=0)"
        )
    if config.parametrization == "log_snr":
        same |= {"levels": config.levels}  # defined at every level, whichever are sampled
    if init is None:
        return
    if init.prior is None or replace(init.prior.config, **same) != replace(config, **same):
        raise UserInputError(
            f"{init.name} has other energies than preset {preset.name}; start from its own preset"
        )
    if model is not None:
        _check_states(model, init, config)


def _check_states(model: Pipeline, init: Pipeline, config: PriorConfig) -> None:
    """`UserInputError` for energies of a generator with other latents or states."""
    assert init.prior is not None
    own = new_prior(replace(model.config, prior=config)).state_dict()
    theirs = init.prior.state_dict()
    names = [{k for k in state if ".symbol_" not in k} for state in (own, theirs)]
    if names[0] != names[1] or any(own[k].shape != theirs[k].shape for k in names[0]):
        raise UserInputError(
            f"the energies of {init.name} are of another generator than {model.name}'s, with "
            "other latents or widths; start from energies of its own architecture"
        )


def former_digest(module: nn.Module) -> str:
    """What earlier releases took for a digest of weights: the same for weights of other signs."""
    total = sum(float(p.double().abs().sum()) for p in module.parameters())
    return f"{total:.10e}"
