"""The words of a call: those that other libraries use for arguments of ours.

seed=7                       seeds 7, 8, ... for as many images as there are
generator=torch.Generator()  its `initial_seed()`, as `seed`; a list gives one seed each
guidance_scale=4             guidance
num_inference_steps=24       steps
batch_size=4, alone          four images, in one batch
image, mask_image            images, masks, of what reads them
torch_dtype                  dtype, of `from_pretrained` and `to`
negative prompts, sizes, ... one line that says which of ours it is, or that there is none
"""

import difflib
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from functools import cache, wraps
from typing import Any, Concatenate, ParamSpec, SupportsIndex, TypeVar

from torch import Generator

from hebm_sample.config import LangevinConfig, plain
from hebm_sample.errors import UserInputError, short
from hebm_sample.io.seeds import MAX_SEED
from hebm_sample.pipeline.outputs import SeedsFrom

__all__ = ["FOREIGN", "in_anybodys_words", "own_words", "unknown_setting"]

_S = TypeVar("_S")
_P = ParamSpec("_P")
_R = TypeVar("_R")

# Names that are taken as ours.
TAKEN = {
    "guidance_scale": "guidance",
    "num_inference_steps": "steps",
    "image": "images",
    "init_image": "images",
    "mask_image": "masks",
    "mask": "masks",
    "torch_dtype": "dtype",
}
# Of what a method hands on to others: its own signature does not name them.
_HANDED_ON = {*LangevinConfig.__dataclass_fields__} | {
    "symbols",
    "guidance",
    "prior",
    "decoder",
    "batch_size",
    "progress",
    "callback",
    "output_type",
}

_SYMBOLS = "conditions are symbols={'Smiling': 'yes'}, of the model's `pipe.symbols`"
_SIZE = "a model has one size; choose it with Pipeline.from_pretrained(name, resolution=...)"
_DEVICE = "move the model with pipe.to(...)"
_LATENTS = "pipe.decode(latents) shows latents, pipe.vary(latents, keep) samples around them"
_CALLBACK = "give callback=function, called as function(step, total, level) after each gradient"
_IMAGES = "images are the first argument of pipe.edit, pipe.inpaint and pipe.encode"
_DEVICE_MAP = "it is device here, as in device='cuda'"

# Names that a method has not: what it has instead.
_INSTEAD = {
    "vary": {
        "num_images": "num_variations says how many of each image",
        "images": "what is varied is source, the first argument",
        "keep_top": "keep says which groups stay, as in keep=slice(0, 2) for the top two",
    },
    "layers": {
        "num_images": "columns says how many in a row",
        "num_variations": "columns says how many in a row",
        "seeds": "it is one image's, seed=7",
        "align": "layers are of a seed; pipe.vary takes images",
        "face": "layers are of a seed; pipe.vary takes images",
    },
    "interpolate": {
        "steps": "num_images says how many images; no gradient is evaluated",
        "num_frames": "num_images says how many images",
        "num_variations": "num_images says how many images",
        "images": "the two ends are a and b",
    },
    "mix": {
        "keep": "cut says how many top groups are the first one's",
        "keep_top": "cut says how many top groups are the first one's",
        "images": "what is mixed is coarse and fine",
    },
    "edit": {"num_images": "there is one edit an image: give an image as often as seeds"},
    "inpaint": {"num_images": "there is one filling an image: give an image as often as seeds"},
    "trajectory": {
        "output_type": "a trajectory is PIL images; pipe.stream has it",
        "best_of": "a trajectory is of one candidate an image; a call has it",
        "rank_by": "a trajectory is of one candidate an image; a call has it",
    },
    "from_pretrained": {
        "device_map": _DEVICE_MAP,
        "cache_folder": "it is cache_dir here",
        "use_auth_token": "it is token here",
        "variant": "there is none; dtype=torch.bfloat16 chooses the precision",
        "use_safetensors": "there is none; weights are in safetensors always",
        "safety_checker": "there is none",
    },
    "to": {"device_map": _DEVICE_MAP},
}

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
    "device_map": _DEVICE,
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
# Those that are a word of ours, by the line above.
_SAME = {
    name: line.removeprefix("it is ").split()[0]
    for name, line in FOREIGN.items()
    if line.startswith(("it is ", "num_images says"))
} | {"num_inference_steps": "steps", "image": "images", "init_image": "images"}
# What a request is built of, and no argument of anybody's.
_INTERNAL = {"facts", "only_last", "num_images", "num_variations"}


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
        if other in found and other not in names and (own in names or _is_open(own, open_ended)):
            _refuse_both(other, own, own in found or own in given)
            found[own] = found.pop(other)
    if "seeds" in names or open_ended:
        _read_seeds(found, given, names)
    for name in found:
        if name not in names:
            _check_name(function.__name__, name, names, open_ended)
    if ordered[:1] == ("num_images",):
        _refuse_text(args[0] if args else found.get("num_images"))
    if {"num_images", "seeds"} <= names:
        _read_batch(found, given)
    return found


def _is_open(name: str, open_ended: bool) -> bool:
    """Whether a method hands on an argument that its signature does not name."""
    return open_ended and name in _HANDED_ON


def _check_name(method: str, name: str, names: frozenset[str], open_ended: bool) -> None:
    """Raise `UserInputError` for a name that we have another word for, and `TypeError`, as Python
    does, for one that nobody knows.
    """
    instead = _INSTEAD.get(method, {})
    if _is_open(name, open_ended) and name not in instead:
        return
    own = _SAME.get(name)  # what is called so elsewhere is told in this method's words
    line = instead.get(name) or (instead.get(own) if own else None) or FOREIGN.get(name)
    if own is not None and own not in names and own not in instead and not open_ended:
        line = None
    if line is not None:
        raise UserInputError(f"there is no argument {name!r}: {line}")
    if not open_ended or name in _INTERNAL:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise TypeError(
            f"{method} has no argument {name!r}{hint}; it has {', '.join(sorted(names))}"
        )


def _refuse_text(count: Any) -> None:
    """A prompt, in the place of how many images."""
    texts = count if isinstance(count, (list, tuple)) else [count]
    if texts and all(isinstance(text, str) for text in texts):
        raise UserInputError(f"num_images is {short(count)}; {_SYMBOLS}")


def in_anybodys_words(
    function: Callable[Concatenate[_S, _P], _R],
) -> Callable[Concatenate[_S, _P], _R]:
    """A method whose named arguments can have other libraries' names."""

    @wraps(function)
    def method(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        call: Any = function
        return call(self, *args, **own_words(function, args, kwargs))

    return method


def _refuse_both(other: str, own: str, both: bool) -> None:
    if both:
        raise UserInputError(f"{other} is {own} here, and both were given; leave {other} out")


def _read_seeds(found: dict[str, Any], given: set[str], names: frozenset[str]) -> None:
    """`seed` and `generator` as `seeds`, or as the `seed` of a method that has one."""
    own = "seed" if "seed" in names else "seeds"
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
