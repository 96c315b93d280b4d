"""Many images to one folder: by several processes, and by one that is stopped and starts again.

A share that drops or repeats a seed, or a run that draws everything again after hours, is noticed
only when it is too late.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tiny import symbolic_pipeline, tiny_config, tiny_pipeline

from hebm_sample.cli.sample import main
from hebm_sample.cli.work import sampling
from hebm_sample.cli.work.outputs import holds
from hebm_sample.cli.work.sharding import BLOCK, Share, unfinished
from hebm_sample.config import GeneratorConfig, ModelConfig, ScaleConfig, StageConfig
from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.generator.kinds import new_generator
from hebm_sample.io import memory as system
from hebm_sample.io.seeds import MAX_SEEDS
from hebm_sample.pipeline.outputs import choose_seeds
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.pipeline.runtime import batch_size as memory
from hebm_sample.pipeline.runtime.batch_size import bytes_per_image, fitting_batch, free_bytes


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_pipeline(tiny_config(steps=6)).save_pretrained(folder)
    return folder


def words(model, outdir, *more):
    command = ["--dataset", model, "--outdir", outdir, "--device", "cpu", *more]
    return [str(word) for word in command]


def sample(model, outdir, *more):
    result = CliRunner().invoke(main, words(model, outdir, "--json", *more))
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


# ---- shares


@pytest.mark.parametrize(("count", "batch", "size"), [(10, 2, 3), (7, 16, 2), (32, 4, 4)])
def test_shares_are_whole_batches_and_cover_all(count, batch, size):
    seeds = list(range(100, 100 + count))
    shares = [Share(rank, size).take(seeds, batch) for rank in range(size)]
    assert sorted(sum(shares, [])) == seeds
    batches = {tuple(seeds[i : i + batch]) for i in range(0, count, batch)}
    for share in shares:
        parts = [tuple(share[i : i + batch]) for i in range(0, len(share), batch)]
        assert set(parts) <= batches
    assert Share().take(seeds, batch) == seeds


def test_the_launchers_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Share.from_environment() == Share()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Share.from_environment() == Share()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert Share.from_environment() == Share(3, 4, 3)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Share.from_environment() == Share(3, 4, 1)
    for rank, size in (("4", "4"), ("", "4"), ("0", "two"), ("0", "0")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", size)
        with pytest.raises(UserInputError, match="accelerate launch or torchrun"):
            Share.from_environment()


def test_two_processes_write_what_one_writes(model, tmp_path, monkeypatch):
    sample(model, tmp_path / "one", "--seeds", "3-9", "--batch", 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    answers = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        answers.append(sample(model, tmp_path / "two", "--seeds", "3-9", "--batch", 2)["seeds"])
    assert answers == [[3, 4, 7, 8], [5, 6, 9]]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    result = CliRunner().invoke(main, ["--dataset", str(model)])
    assert result.exit_code == 2 and "give --outdir" in result.stderr


# ---- stopped and started again


KILLED = """
import os, signal
from hebm_sample.cli import sample as cli
from hebm_sample.io import images

save, files = images.save_image, []

def save_three(*arguments):
    save(*arguments)
    files.append(arguments)
    if len(files) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

images.save_image = save_three
cli.main()
"""


@pytest.mark.slow
def test_killed_and_started_again(model, tmp_path):
    out, more = tmp_path / "out", ["--seeds", "0-5", "--batch", 2]
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, "-c", KILLED, *words(model, out, *more)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = {path: path.stat() for path in out.glob("*.png")}
    assert len(before) == 3
    answer = sample(model, out, *more)
    assert (answer["seeds"], answer["skipped"]) == ([3, 4, 5], 3)
    assert sorted(os.listdir(out)) == [f"seed{seed:04d}.png" for seed in range(6)]
    for path, was in before.items():
        now = path.stat()
        assert (now.st_ino, now.st_mtime_ns) == (was.st_ino, was.st_mtime_ns)


def test_other_settings_are_sampled_again(model, tmp_path):
    sample(model, tmp_path, "--seeds", "0-1")
    first = contents(tmp_path)
    (tmp_path / ".unfinished-0").touch()
    assert sample(model, tmp_path, "--seeds", "0-2")["seeds"] == [2]
    assert {**contents(tmp_path), **first} == contents(tmp_path)
    assert sample(model, tmp_path, "--seeds", "0-1")["seeds"] == [0, 1]  # that run had ended
    (tmp_path / ".unfinished-0").touch()
    other = ["--seeds", "0-1", "--temperature", 0.5]
    result = CliRunner().invoke(main, words(model, tmp_path, *other))
    assert result.exit_code == 2 and "add --overwrite" in result.stderr
    assert (tmp_path / ".unfinished-0").exists()  # of the run before
    (tmp_path / ".unfinished-0").unlink()
    before = contents(tmp_path), sorted(os.listdir(tmp_path))
    for image in tmp_path.glob("*.png"):
        os.utime(image, (1, 1))
    assert CliRunner().invoke(main, words(model, tmp_path, *other)).exit_code == 2
    assert before == (contents(tmp_path), sorted(os.listdir(tmp_path)))  # and no mark
    assert sample(model, tmp_path, *other, "--overwrite")["seeds"] == [0, 1]
    (tmp_path / "seed0000.png").write_bytes(b"no image")
    assert not holds(tmp_path / "seed0000.png", {}) and not holds(tmp_path / "none.png", {})


def other_weights(pipe):
    with torch.no_grad():
        next(iter(pipe.generator.parameters())).add_(1.0)
    return pipe


def with_levels(*levels):
    config = tiny_config(steps=6)
    return tiny_pipeline(replace(config, prior=replace(config.prior, levels=levels)))


@pytest.mark.parametrize(
    ("key", "change", "more"),
    [
        ("weights", lambda: other_weights(tiny_pipeline(tiny_config(steps=6))), []),
        ("description", lambda: with_levels(0.1, 0.5, 0.96, 1.0), []),
        ("sampling", lambda: tiny_pipeline(tiny_config(steps=6, step_scale=0.5)), []),
        ("sampling", lambda: tiny_pipeline(tiny_config(steps=6, momentum=0.5)), []),
        ("dtype", lambda: tiny_pipeline(tiny_config(steps=6)), ["--dtype", "bfloat16"]),
    ],
)
def test_images_of_two_models_never_share_a_folder(tmp_path, key, change, more):
    """A model that was written over keeps its name; its images are those of another."""
    model, out = tmp_path / "model", tmp_path / "out"
    tiny_pipeline(tiny_config(steps=6)).save_pretrained(model)
    assert sample(model, out, "-n", 1)["skipped"] == 0
    assert sample(model, out, "-n", 1, "--skip-existing")["skipped"] == 1
    change().save_pretrained(model, overwrite=True)
    first = contents(out)
    for going_on in (["--skip-existing"], []):
        result = CliRunner().invoke(main, words(model, out, "-n", 2, *more, *going_on))
        assert result.exit_code == 2 and f"made otherwise: {key} is" in result.stderr
    assert {**contents(out), **first} == contents(out) and not (out / "seed0001.png").exists()


@pytest.mark.parametrize("rank", [None, 0, 1])
def test_other_seeds_of_another_model_never_get_into_the_folder(tmp_path, monkeypatch, rank):
    """Whichever seeds are asked for, and whichever of them are this process's."""
    model, out = tmp_path / "model", tmp_path / "out"
    tiny_pipeline(tiny_config(steps=6)).save_pretrained(model)
    sample(model, out, "--seeds", "0-1", "--batch", 1)
    (out / ".unfinished-0").touch()  # of the two processes, the other had made nothing yet
    other_weights(tiny_pipeline(tiny_config(steps=6))).save_pretrained(model, overwrite=True)
    first = contents(out)
    if rank is not None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))
    for overwrite in ([], ["--overwrite"]):
        more = ["--seeds", "2-5", "--batch", 1, *overwrite]
        result = CliRunner().invoke(main, words(model, out, *more))
        assert result.exit_code == 2 and "images of two kinds" in result.stderr
    assert contents(out) == first
    for path in out.glob("*.png"):
        path.unlink()
    (out / "seed0009.png").write_bytes(b"somebody's own")
    assert len(sample(model, out, "--seeds", "2-5", "--batch", 1)["seeds"]) in (2, 4)


def test_a_folder_that_is_filled_meanwhile_is_looked_at_again(tmp_path, monkeypatch):
    """Two commands that begin at the same time find it empty, both."""
    out, models = tmp_path / "out", [tmp_path / name for name in ("one", "other")]
    tiny_pipeline(tiny_config(steps=6)).save_pretrained(models[0])
    other_weights(tiny_pipeline(tiny_config(steps=6))).save_pretrained(models[1])
    real = sampling._left

    def left(*args):
        found = real(*args)
        if args[0].dataset == str(models[0]) and not (out / "seed0009.png").exists():
            sample(models[1], out, "--seeds", "9")
        return found

    monkeypatch.setattr(sampling, "_left", left)
    result = CliRunner().invoke(main, words(models[0], out, "--seeds", "0-2", "--batch", 1))
    assert result.exit_code == 2 and "images of two kinds" in result.stderr
    assert [path.name for path in out.glob("*.png")] == ["seed0009.png"]
    (out / "seed0009.png").unlink()
    monkeypatch.setattr(sampling, "_left", real)
    assert sample(models[0], out, "--seeds", "0-2", "--batch", 1)["seeds"] == [0, 1, 2]


def test_other_settings_of_other_seeds_are_another_kind_and_conditions_are_not(tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    symbolic_pipeline(steps=6).save_pretrained(folder)
    sample(folder, out, "--seeds", "0", "--class", "a")
    assert sample(folder, out, "--seeds", "1", "--class", "b")["seeds"] == [1]
    for more in (["--steps", 3], ["--compile"], ["--temperature", 0.5]):
        result = CliRunner().invoke(main, words(folder, out, "--seeds", "2", *more))
        assert result.exit_code == 2 and "images of two kinds" in result.stderr, more


def test_the_mark_stays_after_a_failure_that_left_images(tmp_path):
    with unfinished(tmp_path / "new", Share()) as stopped:
        assert not stopped
    assert os.listdir(tmp_path / "new") == []
    with pytest.raises(RuntimeError), unfinished(tmp_path / "none", Share()):
        raise RuntimeError
    assert not (tmp_path / "none").exists()
    with pytest.raises(RuntimeError), unfinished(tmp_path / "new", Share(1, 2)):
        (tmp_path / "new" / "seed0000.png").touch()
        raise RuntimeError
    with unfinished(tmp_path / "new", Share(0, 2)) as stopped:
        assert stopped
    assert (tmp_path / "new" / ".unfinished-1").exists()
    with unfinished(tmp_path / "new", Share()):
        pass
    assert os.listdir(tmp_path / "new") == ["seed0000.png"]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_marks_of_a_run_of_more_processes_go_with_the_last(tmp_path, order):
    """Not before: what is left of its work is still to be found by the others."""
    for rank in range(4):
        (tmp_path / f".unfinished-{rank}").touch()
    left = []
    for rank in order:
        with unfinished(tmp_path, Share(rank, 2)) as stopped:
            assert stopped
        left.append(sorted(os.listdir(tmp_path)))
    assert left == [[f".unfinished-{rank}" for rank in sorted((order[1], 2, 3))], []]


# ---- --batch auto


def test_auto_batch_fits_half_of_the_free_memory(monkeypatch):
    pipe = tiny_pipeline()
    each = bytes_per_image(pipe.model)
    values = sum(u.numel() for u in pipe.encode(torch.rand(1, 3, 16, 16), mode="mean"))
    assert each > 4 * values
    for free, batch in ((4 * 7 * each, 7), (4 * 7 * each - 1, 6), (0, 1), (10**15, 64)):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        assert fitting_batch(pipe.model) == batch
        assert fitting_batch(pipe.model, particles=2) == (
            64 if batch == 64 else max(1, batch // 2)
        )
    assert not any(p.grad is not None for p in pipe.prior.parameters())


GIB = 2**30
SYSTEM = {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {8 * 2**20} kB\n"}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8 * GIB),
        ({"cg/memory.max": "max\n", "cg/memory.current": "5"}, 8 * GIB),
        ({"cg/memory.max": f"{4 * GIB}\n", "cg/memory.current": f"{GIB}"}, 3 * GIB),
        (
            {
                "cg/memory.max": f"{4 * GIB}\n",
                "cg/memory.current": f"{4 * GIB}",
                "cg/memory.stat": f"active_file 7\ninactive_file {2 * GIB}\n",
            },
            2 * GIB,
        ),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "cg/a/memory.max": f"{GIB}",
                "cg/a/memory.current": "0",
                "cg/a/b/memory.max": "max",
                "cg/a/b/memory.current": "0",
            },
            GIB,
        ),
        # Version 1: as the container sees it, and below the group's own name; no limit.
        (
            {
                "cg/memory/memory.limit_in_bytes": f"{3 * GIB}\n",
                "cg/memory/memory.usage_in_bytes": f"{2 * GIB}\n",
                "cg/memory/memory.stat": f"total_inactive_file {GIB}\n",
            },
            2 * GIB,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:hugetlb,memory:/docker/7\n1:name=x:/../..\n",
                "cg/memory/docker/7/memory.limit_in_bytes": f"{GIB}",
                "cg/memory/docker/7/memory.usage_in_bytes": "1",
            },
            GIB - 1,
        ),
        (
            {
                "cg/memory/memory.limit_in_bytes": "9223372036854771712",
                "cg/memory/memory.usage_in_bytes": "1",
            },
            8 * GIB,
        ),
        ({"cg/memory.max": "no number", "proc/self/cgroup": "odd\n"}, 8 * GIB),
        ({"cg/memory.max": f"{GIB}", "cg/memory.current": f"{2 * GIB}"}, 0),
    ],
)
def test_free_memory_is_what_a_container_leaves(tmp_path, monkeypatch, files, free):
    for name, text in (SYSTEM | files).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(system, "PROC", tmp_path / "proc")
    monkeypatch.setattr(system, "CGROUP", tmp_path / "cg")
    assert system.free_memory() == free


def test_a_model_too_large_to_draw_is_refused_in_one_line(tmp_path, monkeypatch):
    """Its file is small: nothing but what it describes says how much an image takes."""
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "m")
    each = bytes_per_image(pipe.model)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 4 * each)
    Pipeline.from_pretrained(tmp_path / "m", device="cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda device: each - 1)
    with pytest.raises(EnvironmentFailure, match="one image of tiny takes .* GiB of memory"):
        Pipeline.from_pretrained(tmp_path / "m", device="cpu")
    huge = GeneratorConfig(256, (ScaleConfig(64, 64, 256, 2, 0),), (StageConfig(128, 2, 0),))
    with pytest.raises(EnvironmentFailure, match="67,108,864 latent dimensions"):
        memory.check_memory(
            ModelConfig("huge", huge), new_generator(huge), None, torch.device("cpu")
        )


def test_endless_seeds_are_refused_before_they_are_taken():
    for seeds in (range(10**9), range(2**70), iter(int, 1)):
        with pytest.raises(UserInputError, match=f"more than {MAX_SEEDS} images"):
            choose_seeds(None, seeds)
    assert len(choose_seeds(None, iter(range(MAX_SEEDS)))) == MAX_SEEDS


def test_auto_batch_on_the_command_line(model, tmp_path, monkeypatch):
    """Each process has other memory free; what it samples does not depend on that."""
    assert free_bytes(torch.device("cpu")) > 2**20
    monkeypatch.setenv("WORLD_SIZE", "2")
    answers = []
    for rank, batch in ((0, 7), (1, 20), (1, 3)):
        monkeypatch.setattr(memory, "fitting_batch", lambda pipe, particles, batch=batch: batch)
        monkeypatch.setenv("RANK", str(rank))
        out = tmp_path / str(batch)
        answers.append(sample(model, out, "--seeds", "0-36", "--batch", "auto")["seeds"])
    first, second, again = answers
    assert second == again == list(range(BLOCK, 2 * BLOCK))
    assert sorted(first + second) == list(range(37))
