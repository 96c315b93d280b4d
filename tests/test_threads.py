"""Parts of a batch side by side: the same items as one after another, and an end to all of them
when one fails.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tiny import symbolic_pipeline

from hebm_sample.errors import NonFiniteSampleError
from hebm_sample.pipeline import sampler as drawing
from hebm_sample.pipeline.runtime.malloc import CHOSEN_BY_USER, keep_freed_memory
from hebm_sample.pipeline.runtime.threads import FEWEST, Stop, Stopped, in_threads, part_bounds


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize("count", [1, 7, 8, 50])
def test_parts_cover_the_batch_evenly(threads, count):
    bounds = part_bounds(count, threads)
    sizes = [end - start for start, end in bounds]
    assert [start for start, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
    assert sum(sizes) == count and max(sizes) - min(sizes) <= 1
    assert len(bounds) <= threads and (len(bounds) == 1 or min(sizes) >= FEWEST)


def numbers(start, threads, wait=lambda: None):
    for k in range(3):
        threads.append((threading.get_ident(), torch.get_num_threads()))
        wait()
        yield start + k


def test_items_are_those_of_zip_and_made_at_the_same_time():
    together, seen, before = threading.Barrier(3, timeout=30), [[], [], []], 6
    own = torch.get_num_threads()
    torch.set_num_threads(before)
    try:
        walks = [numbers(10 * i, seen[i], together.wait) for i in range(3)]
        found = []
        for item in in_threads(walks, Stop()):
            found.append(item)
            assert torch.get_num_threads() == before
        assert found == [(0, 10, 20), (1, 11, 21), (2, 12, 22)]
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(own)
    assert {ident for ident, _ in seen[0]} == {threading.get_ident()}
    assert {count for part in seen for _, count in part} == {2}


@pytest.mark.parametrize("failing", [0, 1])
def test_one_failure_stops_the_others(failing):
    stop, ended = Stop(), threading.Event()

    def fails():
        raise ValueError("this one")
        yield

    def waits():
        try:
            until = time.monotonic() + 20
            while failing == 0 and time.monotonic() < until:
                stop()
        except Stopped:
            ended.set()
            raise
        yield 1

    walks = [fails(), waits()] if failing == 0 else [waits(), fails()]
    with pytest.raises(ValueError, match="this one"):
        list(in_threads(walks, stop))
    assert ended.is_set() == (failing == 0) and stop.event.is_set()


def test_batches_share_their_threads():
    seen, before = [], threading.active_count()
    for _ in range(100):
        list(in_threads([iter(range(3)), *(numbers(k, seen) for k in range(3))], Stop()))
    assert len({ident for ident, _ in seen}) <= 2 * 3
    assert threading.active_count() - before <= 2 * 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_makes_threads_of_its_own():
    list(in_threads([iter(range(3)), numbers(0, [])], Stop()))
    if (pid := os.fork()) == 0:
        found = list(in_threads([iter(range(3)), iter(range(3))], Stop()))
        os._exit(len(found) - 3)
    for _ in range(600):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert done and status == 0


# ---- of a pipeline


@pytest.fixture
def two_threads():
    own = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(own)


def test_images_and_reports_are_those_of_one_thread(two_threads, monkeypatch):
    pipe, ticks = symbolic_pipeline(), []
    asked = [{"class": "a"}, {"class": "b"}] * 4
    options = {"symbols": asked, "steps": 6, "output_type": "torch"}
    parts = list(pipe.stream(8, progress=ticks.append, **options))
    torch.set_num_threads(1)
    monkeypatch.setattr(drawing, "in_threads", None)
    whole = list(pipe.stream(8, **options))
    assert sum(ticks) == 6
    for a, b in zip(parts, whole, strict=True):
        assert (a.level, a.seeds) == (b.level, b.seeds)
        torch.testing.assert_close(a.images, b.images, rtol=0, atol=1 / 255)
        torch.testing.assert_close(a.energies, b.energies, rtol=1e-3, atol=1e-3)


def test_a_failure_in_any_part_names_its_seeds(two_threads):
    pipe = symbolic_pipeline()
    with torch.no_grad():
        pipe.prior.nets[0].out.bias.fill_(torch.nan)
    with pytest.raises(NonFiniteSampleError):
        pipe(8)


# ---- what is whose


@pytest.mark.slow
def test_a_library_call_leaves_its_process_alone():
    """In a process of its own: what a command has tuned here cannot be undone."""
    code = """
import sys, torch
from tiny import symbolic_pipeline
from hebm_sample.pipeline.runtime import malloc, process, threads

torch.set_num_threads(2)
seen = []
pipe = symbolic_pipeline()
def look(_):
    seen.append((torch.get_num_threads(), sys.getswitchinterval()))
pipe(8, steps=6, progress=look)
pipe.inpaint(pipe(8, output_type="torch", steps=6).images, torch.ones(8, 16, 16).bool(), steps=6)
assert len(seen) == 6 and set(seen) == {(2, sys.getswitchinterval())}, seen
assert sys.getswitchinterval() == 0.005
assert malloc.keep_freed_memory.cache_info().currsize == 0
assert threads.part_threads() == 1

process.tune_process()
assert sys.getswitchinterval() == threads.TURN and threads.part_threads() == 2
seen.clear()
pipe(8, steps=6, progress=look)
assert set(seen) == {(1, threads.TURN)}, seen
assert torch.get_num_threads() == 2
assert malloc.keep_freed_memory.cache_info().currsize == 1
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False)
    assert done.returncode == 0


def test_whoever_chose_how_memory_is_kept_is_left_alone(monkeypatch):
    monkeypatch.setenv(CHOSEN_BY_USER[0], "1")
    assert keep_freed_memory.__wrapped__() is False
