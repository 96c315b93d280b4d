"""A process whose default dtype or default device was changed gets what every other one gets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys

import numpy as np
import torch
from PIL import Image

from hebm_sample import Pipeline

folder, change = sys.argv[1:]
rng = np.random.default_rng(0)
faces = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(2)]
mask = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
tensors = {"output_type": "torch"}


def found(pipe):
    out = pipe(2, steps=6, **tensors)
    few = {"steps": 6, **tensors}
    yield from (out.images, out.energies, *out.latents)
    yield pipe(2, metropolis=True, precondition=True, steps=9, **tensors).images
    yield pipe(2, symbols={"class": "a"}, guidance=2.0, start="ancestral", **few).images
    yield pipe(2, particles=2, start="ancestral", **few).images
    yield pipe(2, prior="gaussian", **tensors).energies
    yield torch.from_numpy(pipe(2, best_of=2, output_type="numpy", sampler="flow", steps=6).images)
    yield from (pipe.energy(faces), pipe.log_density(faces), pipe.rate(faces))
    yield pipe.score(faces).ratios
    yield pipe.classify(faces)["class"]
    yield pipe.edit(faces, {"class": "b"}, **few).images
    yield pipe.edit(faces, {"class": "b"}, method="noise", **few).images
    yield pipe.inpaint(faces, mask, **few).images
    yield pipe.vary(out, [0], 2, **few).images
    yield from (pipe.mix(*faces, 1, **tensors).images, pipe.reconstruct(faces, **tensors).images)


def loaded():
    return Pipeline.from_pretrained(folder, device="cpu")


pipe = loaded()
before = list(found(pipe))
if change == "float64":
    torch.set_default_dtype(torch.float64)
else:
    torch.set_default_device(change)
for other in (pipe, loaded()):
    for a, b in zip(before, found(other), strict=True):
        assert a.dtype == b.dtype and b.device.type == "cpu" and torch.equal(a, b)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("change", ["float64", "meta"])
def test_default_dtype_and_device_change_nothing(change, tmp_path):
    """Tensors on the device "meta" have no numbers: whatever lands there fails at once."""
    import torch
    from tiny import symbolic_pipeline

    symbolic_pipeline().save_pretrained(tmp_path / "model", dtype=torch.float32)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "model"), change],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout == "equal\n", done.stderr
