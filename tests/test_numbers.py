"""Numbers of NumPy and torch are numbers, and leave as Python's; overlapping calls leave torch's
threads as they were.
"""

import json
import threading

import numpy as np
import pytest
import torch
from tiny import symbolic_pipeline, tiny_pipeline

from hebm_sample.config import LangevinConfig
from hebm_sample.errors import UserInputError
from hebm_sample.pipeline.runtime import threads

KINDS = {
    "numpy": (np.int64, np.float32),
    "unsigned": (np.uint8, np.float64),
    "torch": (lambda x: torch.tensor(x), lambda x: torch.tensor(x, dtype=torch.float64)),
}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def images(pipe, **options):
    return pipe(output_type="torch", **options).images


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_other_libraries_are_numbers(pipe, kind):
    whole, real = KINDS[kind]
    seeds = [whole(7), whole(2)]
    settings = {"steps": whole(9), "temperature": real(0.5), "batch_size": whole(1)}
    found = pipe(whole(2), seeds=seeds, output_type="torch", **settings)
    plain = images(pipe, seeds=[7, 2], steps=9, temperature=0.5, batch_size=1)
    assert torch.equal(found.images, plain)
    assert found.seeds == (7, 2) and {type(seed) for seed in found.seeds} == {int}
    assert pipe(seeds=whole(7)).seeds == (7,)
    factors = (real(0.5), real(1.0), real(0.25))
    assert torch.equal(
        images(pipe, seeds=[1], temperature=factors),
        images(pipe, seeds=[1], temperature=(0.5, 1.0, 0.25)),
    )
    column = pipe.energy(latents=found.latents, groups=[whole(1)])
    assert torch.equal(column, pipe.energy(latents=found.latents, groups=[1]))
    varied = pipe.vary(found, whole(1), whole(2), output_type="torch").images
    assert torch.equal(varied, pipe.vary(found, 1, 2, output_type="torch").images)


def test_seeds_may_be_one_array(pipe):
    for seeds in (np.arange(3), torch.arange(3)):
        found = pipe(seeds=seeds)
        assert found.seeds == (0, 1, 2) and {type(seed) for seed in found.seeds} == {int}


def test_guidance_of_other_libraries_is_a_number():
    pipe = symbolic_pipeline()
    asked = {"seeds": [1], "symbols": {"class": "b"}}
    plain = images(pipe, **asked, guidance=2.0)
    assert torch.equal(images(pipe, **asked, guidance=np.float64(2)), plain)
    assert torch.equal(images(pipe, **asked, guidance=torch.tensor(2.0)), plain)


def test_settings_are_pythons_own_numbers_in_files():
    config = LangevinConfig(
        steps=np.int32(9),  # pyright: ignore
        step_scale=np.float64(0.5),  # pyright: ignore
        temperature=(np.float32(0.5), torch.tensor(1.0)),  # pyright: ignore
        denoise=np.bool_(False),  # pyright: ignore
    )
    found = json.loads(json.dumps(config.to_dict()))
    assert (found["steps"], found["step_scale"], found["denoise"]) == (9, 0.5, False)
    assert LangevinConfig.from_dict(found) == config


@pytest.mark.parametrize("seeds", [np.array([0.5]), [np.float64(1.0)], torch.tensor([1.5])])
def test_fractions_are_no_seeds(pipe, seeds):
    with pytest.raises(UserInputError, match="it must be a whole number"):
        pipe(seeds=seeds)


def test_overlapping_batches_leave_torchs_threads_as_they_were(monkeypatch):
    counts = {}

    def get():
        return counts.setdefault(threading.get_ident(), counts["process"])

    def put(count):  # as torch does: for this thread, and for those that ask for the first time
        counts[threading.get_ident()] = counts["process"] = count

    monkeypatch.setattr(torch, "get_num_threads", get)
    monkeypatch.setattr(torch, "set_num_threads", put)
    counts["process"] = 8
    sharing, inside, leave = threads._Sharing(), threading.Event(), threading.Event()

    def other():
        with sharing(1):
            inside.set()
            leave.wait(10)

    with sharing(1):
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(10)
    leave.set()
    thread.join()
    assert counts["process"] == 8 and set(counts.values()) == {8}
