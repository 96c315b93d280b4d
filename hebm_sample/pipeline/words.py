"""The words of a call: those that other libraries use for arguments of ours.

seed=7                       seeds 7, 8, ... for as many images as there are
generator=torch.Generator()  its `initial_seed()`, as `seed`; a list gives one seed each
guidance_scale=4             guidance
num_inference_steps=24       steps
batch_size=4, alone          four images, in one batch
negative prompts, sizes, ... one line that says which of ours it is, or that there is none
"""

import difflib
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, SupportsIndex

from torch import Generator

from hebm_sample.config import plain
from hebm_sample.errors import UserInputError
from hebm_sample.io.seeds import MAX_SEED
from hebm_sample.pipeline.outputs import SeedsFrom

__all__ = ["FOREIGN", "own_words", "unknown_setting"]

# Names that are taken as ours.
TAKEN = {"guidance_scale": "guidance", "num_inference_steps": "steps"}

_SYMBOLS = "conditions are symbols={'Smiling': 'yes'}, of the model's `pipe.symbols`"
_SIZE = "a model has one size; choose it with Pipeline.from_pretrained(name, resolution=...)"
_DEVICE = "move the model with pipe.to(...)"
_LATENTS = "pipe.decode(latents) shows latents, pipe.vary(latents, keep) samples around them"
_CALLBACK = "give callback=function, called as function(step, total, level) after each gradient"
_IMAGES = "images are the first argument of pipe.edit, pipe.inpaint and pipe.encode"

# Names that are not: what there is instead.
FOREIGN = {
    "prompt": _SYMBOLS,
    "prompt_2": _SYMBOLS,
    "prompt_embeds": _SYMBOLS,
    "text": _SYMBOLS,
    "negative_prompt": "not to have a value is symbols={'Smiling': '~yes'}",
    "negative_prompt_embeds": "not to have a value is symbols={'Smiling': '~yes'}",
    "class_labels": _SYMBOLS,
    "class_idx": _SYMBOLS,
    "class_name": _SYMBOLS,
    "labels": _SYMBOLS,
    "label": _SYMBOLS,
    "attributes": _SYMBOLS,
    "attrs": _SYMBOLS,
    "conditions": _SYMBOLS,
    "condition": _SYMBOLS,
    "num_images_per_prompt": "num_images says how many",
    "num_samples": "num_images says how many",
    "n_samples": "num_images says how many",
    "n": "num_images says how many",
    "count": "num_images says how many",
    "truncation": "it is temperature here",
    "truncation_psi": "it is temperature here",
    "trunc": "it is temperature here",
    "psi": "it is temperature here",
    "cfg": "it is guidance here",
    "cfg_scale": "it is guidance here",
    "guidance_weight": "it is guidance here",
    "num_steps": "it is steps here",
    "n_steps": "it is steps here",
    "timesteps": "steps says how many gradients; the levels are the model's",
    "sigmas": "steps says how many gradients; the levels are the model's",
    "scheduler": "it is sampler here: 'recovery', 'annealed' or 'flow'",
    "eta": "there is none; temperature scales the noise",
    "noise_mode": "there is none; the seed says all noise",
    "batch": "it is batch_size here",
    "height": _SIZE,
    "width": _SIZE,
    "size": _SIZE,
    "image_size": _SIZE,
    "resolution": _SIZE,
    "device": _DEVICE,
    "dtype": _DEVICE,
    "torch_dtype": _DEVICE,
    "latents": _LATENTS,
    "callback_on_step_end": _CALLBACK,
    "callback_steps": _CALLBACK,
    "image": _IMAGES,
    "init_image": _IMAGES,
    "mask_image": "masks are the second argument of pipe.inpaint",
    "mask": "masks are the second argument of pipe.inpaint",
    "return_dict": "there is none; a call returns Samples",
    "random_seed": "it is seeds here",
    "rng": "it is generator here",
    "show_progress": "it is progress here",
    "progress_bar": "it is progress here",
    "verbose": "it is progress here",
}


@cache
def _parameters(function: Callable[..., Any]) -> tuple[frozenset[str], bool, tuple[str, ...]]:
    """The names of a method's arguments, whether it takes others, and those that stand in order,
    without the first (model or sampler).
    """
    found = list(inspect.signature(function).parameters.values())[1:]
    names = frozenset(p.name for p in found if p.kind != p.VAR_KEYWORD)
    ordered = tuple(p.name for p in found if p.kind == p.POSITIONAL_OR_KEYWORD)
    return names, any(p.kind == p.VAR_KEYWORD for p in found), ordered


def own_words(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The named arguments of a call in our words.

    Arguments:
        function: Whose, with the model or the sampler as its first argument.
        args: What was given in order, without that one.
        kwargs: What was given by name.

    Raises:
        UserInputError: Two names of one argument, or a name that we have another word for.
    """
    names, open_ended, ordered = _parameters(function)
    given, found = set(ordered[: len(args)]), dict(kwargs)
    for other, own in TAKEN.items():
        if other in found and (own in names or open_ended):
            _refuse_both(other, own, own in found or own in given)
            found[own] = found.pop(other)
    if "seeds" in names or open_ended:
        _read_seeds(found, given, names)
    for name in found:
        if name in FOREIGN and name not in names:
            raise UserInputError(f"there is no argument {name!r}: {FOREIGN[name]}")
    if {"num_images", "seeds"} <= names:
        _read_batch(found, given)
    return found


def _refuse_both(other: str, own: str, both: bool) -> None:
    if both:
        raise UserInputError(f"{other} is {own} here, and both were given; leave {other} out")


def _read_seeds(found: dict[str, Any], given: set[str], names: frozenset[str]) -> None:
    """`seed` and `generator` as `seeds`, or as the `seed` of a method that has one."""
    own = "seed" if "seed" in names else "seeds"
    if own == "seed" and "seeds" in found:
        raise UserInputError("there is no argument 'seeds': it is one image's, seed=7")
    for other in ("generator", "seed"):
        if other == own or (value := found.pop(other, None)) is None:
            continue
        _refuse_both(other, own, found.get(own) is not None or own in given)
        value = _of_generators(value) if other == "generator" else value
        value = plain(value)
        whole = isinstance(value, SupportsIndex) and not hasattr(value, "ndim")  # arrays have both
        if own == "seeds" and whole and not isinstance(value, bool):
            value = SeedsFrom(operator.index(value))
        found[own] = value


def _of_generators(value: Any) -> Any:
    """The seed of a generator, or of each in a list: of a seed of 64 bits the lower 32, which are
    those that torch's own generator of the CPU reads.
    """
    if isinstance(value, (list, tuple)):
        return [_of_generators(item) for item in value]
    if not isinstance(value, Generator):
        raise UserInputError(
            f"generator is of type {type(value).__name__}; give a torch.Generator, or seed=7"
        )
    return value.initial_seed() % (MAX_SEED + 1)


def _read_batch(found: dict[str, Any], given: set[str]) -> None:
    """A batch of four, where nothing else says how many images, is four images."""
    if given & {"num_images", "seeds"} or found.get("num_images") is not None:
        return
    seeds, batch = found.get("seeds"), found.get("batch_size")
    counted = isinstance(found.get("symbols"), (list, tuple))
    if counted or not (seeds is None or isinstance(seeds, SeedsFrom)):
        return
    batch = plain(batch)
    if isinstance(batch, int) and not isinstance(batch, bool) and batch > 0:
        found["num_images"] = batch


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """What to say of a setting that nobody knows: the one of that meaning, or of such letters."""
    if name in FOREIGN:
        return f" ({FOREIGN[name]})"
    close = difflib.get_close_matches(name, [*known, *TAKEN], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
