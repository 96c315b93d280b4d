"""A device that is not there is one line, not torch's traceback when the first tensor is moved."""

import pytest
import torch

from hebm_sample.errors import EnvironmentFailure
from hebm_sample.pipeline.device import pick_device


@pytest.mark.parametrize("cuda", [False, True])
def test_auto_takes_cuda_or_the_cpu(monkeypatch, cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == ("cuda" if cuda else "cpu")


@pytest.mark.parametrize(
    ("device", "module", "message"),
    [
        ("cuda:1", torch.cuda, "sees no CUDA GPU; use cpu or auto"),
        ("mps", torch.backends.mps, "sees no GPU of a Mac"),
    ],
)
def test_a_device_that_is_absent(monkeypatch, device, module, message):
    monkeypatch.setattr(module, "is_available", lambda: False)
    with pytest.raises(EnvironmentFailure, match=message):
        pick_device(device)
    monkeypatch.setattr(module, "is_available", lambda: True)
    assert pick_device(device) == torch.device(device)
