"""Toy data and short runs: coloured discs of 16x16 pixels, and `tiny` cut to few steps; two
processes of a run, as threads.
"""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hebm_sample.config import SymbolConfig
from hebm_sample.presets.models import Preset, find_preset

SHORT = {"steps": 10, "log_every": 4, "checkpoint_every": 0.0, "sample_every": 1e9}


def draw_images(folder: Path, count: int = 40, seed: int = 0, labels: bool = False) -> Path:
    """Discs on a background of the opposite colour; the label says which is the brighter one."""
    folder.mkdir(parents=True)
    random, lines = np.random.default_rng(seed), []
    y, x = np.mgrid[:16, :16]
    for i in range(count):
        colour, (cx, cy) = random.integers(0, 256, 3), random.integers(4, 12, 2)
        inside = (x - cx) ** 2 + (y - cy) ** 2 < random.integers(9, 25)
        pixels = np.where(inside[..., None], colour, 255 - colour)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03}.png")
        lines.append({"file_name": f"{i:03}.png", "bright": int(colour.mean() > 127)})
    if labels:
        (folder / "metadata.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


def short_preset(**settings) -> Preset:
    """`tiny` with ten steps, a log line and a checkpoint every four, and these settings."""
    preset = find_preset("tiny")
    settings = SHORT | settings
    return replace(
        preset,
        chain_steps=3,
        generator_settings=replace(preset.generator_settings, **settings),
        prior_settings=replace(preset.prior_settings, **settings),
        decoder_settings=replace(preset.decoder_settings, **{"evaluate_every": 0} | settings),
    )


def labelled_preset(**settings) -> Preset:
    """`short_preset` with the symbol `Bright` (no, yes), the column `bright` of the labels."""
    preset = short_preset(**settings)
    symbols = (SymbolConfig("Bright", ("no", "yes")),)
    prior = replace(preset.prior, symbols=symbols)
    return replace(preset, prior=prior, label_columns=(("Bright", "bright"),))


class Together:
    """accelerate's engine of one of two processes, which are threads and wait for each other."""

    num_processes = 2
    gradient_accumulation_steps, mixed_precision = 1, "no"
    device = torch.device("cpu")

    def __init__(self, rank: int, barrier: threading.Barrier, said: dict) -> None:
        self.rank, self.barrier, self.said = rank, barrier, said

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    def wait_for_everyone(self) -> None:
        self.barrier.wait()

    def reduce(self, value: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        self.said[self.rank] = value
        self.barrier.wait()
        total = self.said[0] + self.said[1]
        self.barrier.wait()
        return total


def by_two(monkeypatch, work) -> list:
    """What `work(engine)` gives in each of two processes, or the exception that it ends with."""
    barrier, said = threading.Barrier(2, timeout=20), {}
    ranks = threading.local()

    def broadcast(texts: list, from_process: int = 0) -> list:
        if ranks.own == from_process:
            said["text"] = list(texts)
        barrier.wait()
        texts[:] = said["text"]
        return texts

    def one(rank: int):
        ranks.own = rank
        try:
            return work(Together(rank, barrier, said))
        except Exception as error:
            return error

    monkeypatch.setattr("accelerate.utils.broadcast_object_list", broadcast)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, (0, 1)))
