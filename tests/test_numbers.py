"""Numbers of NumPy and torch are numbers, and leave as Python's; overlapping calls leave torch's
threads as they were.
"""

import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image
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
    for kind in (np.float64, np.float32, np.float16, np.int64, np.array, torch.tensor):
        for guidance in (kind(2), {"class": kind(2)}):
            found = pipe(**asked, guidance=guidance, output_type="torch")
            assert torch.equal(found.images, plain)
            told = found.provenance[0].facts["guidance"]["class"]
            assert type(told) in (int, float) and told == 2
    image, few = Image.new("RGB", (16, 16), "grey"), {"steps": 3, "output_type": "torch"}
    mask = torch.arange(256).view(1, 16, 16) < 128
    one, other = {"class": "b"}, np.float32(2)
    edits = [pipe.edit(image, one, guidance=g, **few).images for g in (2.0, other)]
    assert torch.equal(*edits)
    fills = [
        pipe.inpaint(image, mask, symbols=one, guidance=g, **few).images for g in (2.0, other)
    ]
    assert torch.equal(*fills)
    for wrong in (np.array([2.0, 1.0]), True, np.float32("nan"), "2"):
        with pytest.raises(UserInputError, match="guidance is|guidance of"):
            pipe(**asked, guidance=wrong)


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


def test_counts_are_pythons_own(pipe):
    assert type(pipe.total_steps(num_images=np.int64(3), steps=np.int64(3))) is int
    assert type(pipe.total_steps(num_images=torch.tensor(3))) is int
    assert len(pipe(batch_size=np.int64(3))) == 3  # a batch of three is three images
    assert pipe(seed=torch.tensor(7)).seeds == (7,)
    mixed = pipe.mix(pipe(1), pipe(1), np.int64(1))
    assert type(mixed.provenance[0].facts["keep_top"]) is int
    assert len(pipe.interpolate(pipe(1), pipe(1), torch.tensor(3))) == 3


@pytest.mark.parametrize("whole", [3.0, torch.tensor(3.0), np.float32(3), True, np.bool_(True)])
def test_what_is_no_whole_number_is_no_seed(pipe, whole):
    for asked in ({"seeds": whole}, {"seeds": [whole]}, {"seed": whole}):
        with pytest.raises(UserInputError, match="whole number"):
            pipe(**asked)


@pytest.mark.parametrize("truth", [True, [True], np.bool_(True), np.array([True])])
def test_truth_values_are_no_groups(pipe, truth):
    with pytest.raises(UserInputError, match="groups .* asked for; this model has 3"):
        pipe.energy(latents=pipe(1).latents, groups=truth)


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
