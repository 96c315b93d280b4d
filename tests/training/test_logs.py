"""A resumed run's log reads as if it had never been interrupted, and every line is JSON.

Without this, plots double back after a resume and one NaN makes a log unreadable to strict
parsers.
"""

import json
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from hebm_sample.errors import EnvironmentFailure
from hebm_sample.io.made import count_made
from hebm_sample.training.log import LOG_NAME, RunLog, read_log


def refuse(name):
    raise AssertionError(f"{name} is not JSON")


def write(run_dir, steps, resume_step=None):
    with RunLog(run_dir, tensorboard=False, resume_step=resume_step) as log:
        for step in steps:
            log.log(step, loss=step / 3, kl=[step, 2.0 * step])


def test_resumed_log_equals_uninterrupted(tmp_path):
    write(tmp_path / "whole", range(1, 10))
    write(tmp_path / "cut", range(1, 7))
    with (tmp_path / "cut" / LOG_NAME).open("a") as file:
        file.write('{"step": 7, "lo')  # killed in the middle of a line
    write(tmp_path / "cut", range(5, 10), resume_step=4)
    whole, cut = (tmp_path / name / LOG_NAME for name in ("whole", "cut"))
    assert cut.read_bytes() == whole.read_bytes()
    assert [p.name for p in cut.parent.iterdir()] == [LOG_NAME]


def test_torn_line_is_dropped_without_resume_step(tmp_path):
    write(tmp_path, range(2))
    with (tmp_path / LOG_NAME).open("a") as file:
        file.write('{"step": 2')
    assert [r["step"] for r in read_log(tmp_path)] == [0, 1]
    write(tmp_path, [2])
    assert [r["step"] for r in read_log(tmp_path)] == [0, 1, 2]
    assert read_log(tmp_path / "nowhere") == []


def test_values_are_valid_json(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        log.log(1, bad=float("nan"), worse=[float("inf"), -float("inf")], none=None, name="x")
        log.log(2, tensor=torch.tensor([1.5, float("nan")]), scalar=torch.tensor(2), n=np.int64(3))
        lines = (tmp_path / LOG_NAME).read_text().splitlines()  # flushed while open
    first, second = (json.loads(line, parse_constant=refuse) for line in lines)
    assert first == {"step": 1, "bad": "nan", "worse": ["inf", "-inf"], "none": None, "name": "x"}
    assert second == {"step": 2, "tensor": [1.5, "nan"], "scalar": 2, "n": 3}


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def scalars(tag):
        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        return [(e.step, e.value) for e in events.Scalars(tag)]

    with RunLog(tmp_path) as log:
        for step in (1, 2, 3):
            log.log(step, bits=float(step), kl=[0.5, step], skip=float("nan"), note="text")
    assert scalars("bits") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert scalars("kl/1") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    time.sleep(1.1)  # files are read in the order of their names, which count seconds
    with RunLog(tmp_path, resume_step=2) as log:
        log.log(3, bits=30.0)
    assert scalars("bits") == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_missing_tensorboard_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(EnvironmentFailure, match=r"pip install .*\[train\]"):
        RunLog(tmp_path)


def test_images(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        path = log.image(12, "grid", Image.new("RGB", (4, 4), (1, 2, 3)))
    assert path == tmp_path / "samples" / "grid-00000012.png"
    assert Image.open(path).getpixel((0, 0)) == (1, 2, 3)
    assert len(list(path.parent.iterdir())) == 1
    assert count_made([path]) == 1  # a copy of it among somebody's images is told from them


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFailure, match="log in .*file.* cannot be written"):
        RunLog(tmp_path / "file", tensorboard=False)
