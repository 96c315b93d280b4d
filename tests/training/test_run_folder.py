"""One folder, one run: nothing that was asked is ignored, and two runs never write to one folder.

Without this a run "on CUDA" trains for days on the CPU, `--resume --max-steps` says nothing and
changes nothing, and two runs overwrite each other's checkpoints.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from click.testing import CliRunner
from tiny import symbolic_pipeline
from toy import draw_images

from hebm_sample.cli.train import main
from hebm_sample.errors import UserInputError
from hebm_sample.hub.resolve import resolve
from hebm_sample.io.written import mark_run_folder, of_a_run
from hebm_sample.training.checkpoint import latest_checkpoint, read_state
from hebm_sample.training.lock import locked
from hebm_sample.training.trainer import make_accelerator, make_run_folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    draw_images(home / "images")
    for name, steps in (("generator", 2), ("longer", 3)):
        result = invoke(home, "--out", home / name, "--max-steps", steps)
        assert result.exit_code == 0, result.output
    return home


def invoke(home, *more, kind="generator"):
    where = ("--preset", "tiny", "--data", home / "images", "--device", "cpu", "--quiet")
    env = {"HEBM_CACHE": str(home / "cache")}
    return CliRunner().invoke(main, [str(x) for x in (kind, *where, *more)], env=env)


def refused(result, code, *words):
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr


def test_a_runs_folder_is_the_model_it_ended_with(home, tmp_path):
    found = resolve(home / "generator")
    assert found.row == resolve(home / "generator" / "model").row
    (tmp_path / "cut").mkdir()
    mark_run_folder(tmp_path / "cut")
    with pytest.raises(UserInputError, match="has not ended; go on .* hebm-train export --run"):
        resolve(tmp_path / "cut")


class TestResume:
    def test_another_length_is_refused(self, home):
        out = ("--out", home / "generator", "--resume")
        refused(invoke(home, *out, "--max-steps", 9), 2, "--max-steps 9", "has 2 steps", "--init")
        more = ("--set", "settings.steps=9")
        refused(invoke(home, *out, *more), 2, "--set settings.steps", "has 2 steps", "--init")
        refused(invoke(home, *out, "--time-budget", "1h"), 2, "--time-budget of 3600 s")
        for same in ((), ("--max-steps", 2)):
            assert invoke(home, *out, *same).exit_code == 0

    @pytest.mark.slow
    def test_the_budget_of_the_run_can_be_repeated(self, home, tmp_path):
        run = ("--out", tmp_path / "run", "--time-budget")
        assert invoke(home, *run, "2s").exit_code == 0
        assert invoke(home, *run, "2s", "--resume").exit_code == 0
        refused(invoke(home, *run, "3s", "--resume"), 2, "--time-budget of 3 s")

    def test_another_start_is_refused(self, home, tmp_path):
        started = ("--out", tmp_path / "run", "--max-steps", 2)
        init = ("--init", home / "generator")
        assert invoke(home, *started, *init).exit_code == 0
        assert invoke(home, *started, *init, "--resume").exit_code == 0
        refused(invoke(home, *started, "--resume"), 2, "started from another model (--init)")
        other = invoke(home, *started, "--init", home / "longer", "--resume")
        refused(other, 2, "started from another model (--init)")
        plain = invoke(home, "--out", home / "generator", *init, "--resume")
        refused(plain, 2, "started from no model, without --init")

    def test_runs_of_before_said_nothing_of_their_start(self, home, tmp_path, monkeypatch):
        import hebm_sample.training.run as started

        save = started.save_checkpoint

        def of_before(*args, state, **more):
            state = {k: v for k, v in state.items() if k not in ("init", "time_budget")}
            return save(*args, state=state, **more)

        monkeypatch.setattr(started, "save_checkpoint", of_before)
        out = ("--out", tmp_path / "run", "--max-steps", 2)
        assert invoke(home, *out).exit_code == 0
        assert "init" not in read_state(latest_checkpoint(tmp_path / "run"))
        monkeypatch.undo()
        assert invoke(home, *out, "--resume").exit_code == 0


class TestDevice:
    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
    @pytest.mark.parametrize("kind", ["generator", "prior"])
    def test_cuda_that_is_not_there(self, home, tmp_path, kind):
        more = ("--generator", home / "generator") if kind == "prior" else ()
        result = invoke(home, "--device", "cuda", "--out", tmp_path / "run", *more, kind=kind)
        refused(result, 1, "this torch sees no CUDA GPU")
        assert not (tmp_path / "run").exists()

    def test_half_precision_that_would_need_loss_scaling_is_refused(self, monkeypatch):
        class Told:
            mixed_precision = "fp16"

        monkeypatch.setattr("accelerate.Accelerator", lambda **_: Told)
        with pytest.raises(UserInputError, match="mixed precision 'fp16'.*to no or bf16"):
            make_accelerator("cpu")


HOLD = """
import sys, time
from hebm_sample.training.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


class TestLock:
    @pytest.fixture
    def holder(self, tmp_path):
        command = [sys.executable, "-c", HOLD, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
        process.wait()
        process.stdout.close()

    @pytest.mark.parametrize("kind", ["generator", "prior"])
    def test_the_second_run_is_refused(self, home, tmp_path, holder, kind):
        more = ("--generator", home / "generator") if kind == "prior" else ()
        before = sorted(os.listdir(tmp_path))
        result = invoke(home, "--out", tmp_path, "--max-steps", 2, *more, kind=kind)
        refused(result, 2, "another process is training in", "choose another folder")
        assert set(os.listdir(tmp_path)) - set(before) <= {".hebm-run"}

    def test_it_dies_with_its_process(self, tmp_path, holder):
        with pytest.raises(UserInputError, match="another process"), locked(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
        holder.wait()
        time.sleep(0.1)
        with locked(tmp_path), locked(tmp_path):  # and one process may enter twice
            pass
        with locked(tmp_path):
            pass


def files(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class TestPlace:
    """What is not a run's is found before the run, and stays."""

    @pytest.mark.parametrize(
        "name",
        [
            *("log.jsonl", "samples/grid-00000002.png", "best/x", "model/README.md"),
            *("generator/config.json", "recipe.json", "ddpm.safetensors", "cat.jpg"),
            *("weights_manifest.json", "checkpoint-00000002/state.json", "tensorboard/x"),
        ],
    )
    def test_files_of_others_are_never_touched(self, home, tmp_path, name, monkeypatch):
        monkeypatch.setattr("hebm_sample.data.dataset.load_images", None)  # before data are read
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("mine")
        more = ("--generator", home / "generator")
        for kind, options in (("generator", ()), ("prior", more), ("decoder", more)):
            out = ("--out", tmp_path, "--max-steps", 2)
            refused(invoke(home, *out, *options, kind=kind), 2, name.split("/")[0], "choose")
        baseline = ("baseline", "ddpm", "--preset", "tiny", "--data", home / "images")
        line = (*baseline, "--generator", home / "generator", "--out", tmp_path, "--quiet")
        refused(CliRunner().invoke(main, [str(x) for x in line]), 2, name.split("/")[0], "choose")
        assert files(tmp_path) == {str(tmp_path / name): b"mine"}
        with pytest.raises(UserInputError, match="choose another"):
            make_run_folder(tmp_path)  # as from Python

    def test_in_the_folderof_a_run_all_is_the_runs(self, home, tmp_path):
        make_run_folder(tmp_path)
        (tmp_path / "log.jsonl").write_text("a start that was given up\n")
        assert invoke(home, "--out", tmp_path, "--max-steps", 2).exit_code == 0
        assert "given up" not in (tmp_path / "log.jsonl").read_text()

    def test_a_models_place_is_looked_at_first(self, home, tmp_path):
        make_run_folder(tmp_path)
        symbolic_pipeline().save_pretrained(tmp_path / "model")
        before = files(tmp_path)
        refused(invoke(home, "--out", tmp_path, "--max-steps", 2), 2, "holds a model already")
        (tmp_path / "model/weights_manifest.json").unlink()
        (tmp_path / "model/config.json").write_text("{}")
        refused(invoke(home, "--out", tmp_path, "--max-steps", 2), 2, "no model of hebm_sample")
        assert {*files(tmp_path)} < {*before}

    def test_a_folder_of_the_data_is_no_runs(self, home, tmp_path):
        for name in ("cats", "dogs"):
            draw_images(tmp_path / "data" / name, 3)
        (tmp_path / "data/tables").mkdir()
        (tmp_path / "data/tables/metadata.csv").write_text("file_name\n")
        for place in ("cats", "tables"):
            out = ("--data", tmp_path / "data", "--out", tmp_path / "data" / place)
            refused(invoke(home, *out, "--max-steps", 2), 2, "is a folder of the data")
        assert not list(tmp_path.rglob(".hebm-run"))

    @pytest.mark.parametrize("empty", ["--data", "--out", "--init"])
    def test_nothing_is_no_place(self, home, tmp_path, empty, monkeypatch):
        monkeypatch.chdir(tmp_path)
        draw_images(tmp_path / "images", 3)
        result = invoke(home, "--out", "run", "--max-steps", 2, empty, "")
        refused(result, 2, f"'{empty}'", ": it is empty; give a path")
        assert os.listdir(tmp_path) == ["images"]


class TestEnded:
    """A run that has ended leaves its model as its owner left it."""

    def test_what_was_edited_stays(self, home, tmp_path):
        run, more = tmp_path / "run", ("--generator", home / "generator")
        out = ("--out", run, "--max-steps", 2)
        for kind, options in (("generator", ()), ("prior", more), ("decoder", more)):
            run.rename(tmp_path / f"before-{kind}") if run.exists() else None
            assert invoke(home, *out, *options, kind=kind).exit_code == 0
            (run / "model/README.md").write_text("mine")
            (run / "model/calibration.json").write_text("mine")
            before = files(run / "model")
            assert invoke(home, *out, *options, "--resume", kind=kind).exit_code == 0
            assert files(run / "model") == before
            # Else a run could write over somebody's file of that name.
            assert [n for n in os.listdir(run) if not (n[0] == "." or of_a_run(n))] == []

    def test_a_model_that_is_missing_is_written(self, home, tmp_path):
        out = ("--out", tmp_path / "run", "--max-steps", 2)
        assert invoke(home, *out).exit_code == 0
        before = files(tmp_path / "run/model")
        shutil.rmtree(tmp_path / "run/model")
        assert invoke(home, *out, "--resume").exit_code == 0
        weights = str(tmp_path / "run/model/generator.safetensors")
        assert files(tmp_path / "run/model")[weights] == before[weights]


class TestExport:
    """Nothing that exists is overwritten unasked, and what is not a model's never is."""

    def export(self, home, folder, *more):
        arguments = ("export", "--run", home / "generator", "--out", folder, *more)
        return CliRunner().invoke(main, [str(x) for x in arguments])

    def test_a_model_is_replaced_when_asked(self, home, tmp_path):
        symbolic_pipeline().save_pretrained(tmp_path / "model")
        before = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}
        assert "prior.safetensors" in before
        refused(self.export(home, tmp_path / "model"), 2, "already holds", "--overwrite")
        with pytest.raises(UserInputError, match="already holds config.json"):
            symbolic_pipeline().save_pretrained(tmp_path / "model")
        assert before == {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}
        (tmp_path / "model/mine.txt").write_text("x")
        assert self.export(home, tmp_path / "model", "--overwrite").exit_code == 0
        after = {p.name for p in (tmp_path / "model").iterdir()}
        assert after == set(before) - {"prior.safetensors"} | {"mine.txt", "samples.png"}

    @pytest.mark.parametrize("name", ["README.md", "config.json", "prior.safetensors"])
    def test_files_of_others_are_never_touched(self, home, tmp_path, name):
        (tmp_path / name).write_text("{}")
        refused(self.export(home, tmp_path), 2, f"already holds {name}")
        refused(self.export(home, tmp_path, "--overwrite"), 2, f"holds {name} and no model")
        assert [p.name for p in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_text() == "{}"

    def test_an_interrupted_folder_can_be_written_again(self, home, tmp_path):
        assert self.export(home, tmp_path / "model").exit_code == 0
        (tmp_path / "model/weights_manifest.json").unlink()
        assert self.export(home, tmp_path / "model", "--overwrite").exit_code == 0

    def test_notes_that_are_not_utf8(self, home, tmp_path):
        (tmp_path / "notes.md").write_bytes("Gemälde".encode("latin-1"))
        result = self.export(home, tmp_path / "model", "--notes", tmp_path / "notes.md")
        refused(result, 2, "notes.md is not UTF-8", "save it as UTF-8")
        assert not (tmp_path / "model").exists()
