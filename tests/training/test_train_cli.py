"""`hebm-train` as it is typed: every command does its work, and every mistake is one line.

Without this a wrong path ends in a traceback after minutes of decoding, an option is silently
without effect, and `--help` waits for torch.
"""

import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from tiny import symbolic_pipeline, tiny_pipeline
from toy import draw_images

from hebm_sample import Pipeline, __version__
from hebm_sample.cli.train import main
from hebm_sample.errors import UserInputError
from hebm_sample.evaluation.duration import in_words
from hebm_sample.presets.settings import parse_duration
from hebm_sample.training.checkpoint import latest_checkpoint, read_state
from hebm_sample.training.log import read_log
from hebm_sample.training.trainer import Run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Images, an energy-based model, and a generator's run of two steps."""
    home = tmp_path_factory.mktemp("command")
    draw_images(home / "images")
    for part, seed in (("train", 0), ("test", 1)):
        draw_images(home / "labelled" / part, seed=seed, labels=True)
    tiny_pipeline().save_pretrained(home / "model")
    symbolic_pipeline().save_pretrained(home / "symbolic")
    result = invoke(home, *generator_command(home), "--out", home / "generator")
    assert result.exit_code == 0, result.output
    return home


def invoke(home, *arguments):
    env = {"HEBM_CACHE": str(home / "cache")}
    return CliRunner().invoke(main, [str(a) for a in arguments], env=env)


@pytest.fixture
def run(home):
    return lambda *arguments: invoke(home, *arguments)


def generator_command(home):
    where = ("--preset", "tiny", "--data", home / "images", "--device", "cpu", "--quiet")
    return ("generator", *where, "--max-steps", 2)


def prior_command(home):
    return ("prior", "--generator", home / "generator", *generator_command(home)[1:])


def evaluate_command(home):
    sizes = ("-n", 10, "--validation", 20, "--steps", 3, "--device", "cpu", "--quiet")
    return ("evaluate", home / "model", "--data", home / "images", *sizes)


def control_command(home):
    where = ("--data", home / "labelled", "--validation", 0, "--label-column", "Smiling=bright")
    sizes = ("-n", 4, "--steps", 3, "--layer-images", 1, "--held-out", 10)
    return ("evaluate", home / "symbolic", *where, *sizes, "--device", "cpu", "--quiet")


def judge_command(home):
    where = ("--data", home / "labelled", "--size", 16, "--column", "bright")
    return ("judge", *where, "--steps", 2, "--validation", 0, "--device", "cpu", "--quiet")


def assert_refused(result, code, *words):
    """One line on stderr, the exit status, nothing else."""
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


class TestCommands:
    def test_generator(self, home, tmp_path):
        options = ("--batch-size", 4, "--learning-rate", 1e-3, "--seed", 3, "--validation", 5)
        options += ("--checkpoint-every", "1h", "--log-every", 1, "--out", tmp_path / "run")
        result = invoke(home, *generator_command(home), *options)
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("generator: 2 steps in ")
        assert str(tmp_path / "run/model") in result.stdout and result.stderr == ""
        identity = read_state(latest_checkpoint(tmp_path / "run"))["identity"]
        settings = identity["settings"]
        assert (settings["batch_size"], settings["seed"], settings["log_every"]) == (4, 3, 1)
        assert (settings["learning_rate"], settings["validation"]) == (1e-3, 5)
        assert [line["step"] for line in read_log(tmp_path / "run")] == [1, 2]
        assert list((tmp_path / "run/tensorboard").iterdir())

    def test_prior_resume_and_export(self, home, run, tmp_path):
        command = (*prior_command(home), "--out", tmp_path / "run")
        result = run(*command, "--objective", "score")
        assert result.exit_code == 0 and result.stdout.startswith("prior: 2 steps"), result.output
        assert run(*command, "--resume").exit_code == 0
        export = ("export", "--run", tmp_path / "run", "--out", tmp_path / "model")
        notes = tmp_path / "notes.md"
        notes.write_text("Of a test.")
        more = ("--name", "discs", "--licence", "CC0-1.0", "--notes", notes, "--sampler", "flow")
        more += ("--temperature", 0.85)
        result = run(*export, *more, "--steps", 5, "--step-scale", 0.5)
        assert result.exit_code == 0, result.output
        assert "discs, 16x16" in result.stdout and "hebm-sample --dataset" in result.stdout
        pipe = Pipeline.from_pretrained(tmp_path / "model", device="cpu")
        sampling = pipe.config.sampling
        assert (sampling.sampler, sampling.steps, sampling.step_scale) == ("flow", 5, 0.5)
        assert sampling.temperature == 0.85
        card = (tmp_path / "model/README.md").read_text()
        assert "Of a test." in card and "CC0-1.0" in card

    def test_prior_from_a_model_folder_with_init_and_mle(self, home, run, tmp_path, monkeypatch):
        command = ("prior", "--generator", home / "model", *generator_command(home)[1:])
        more = ("--objective", "mle", "--init", home / "model", "--out", tmp_path / "run")
        result = run(*command, *more)
        assert result.exit_code == 0, result.output
        identity = read_state(latest_checkpoint(tmp_path / "run"))["identity"]
        assert " mle " in identity["data"]

    def test_evaluate(self, home, run, tmp_path):
        result = run(*evaluate_command(home), "--json", tmp_path / "figures.json")
        assert result.exit_code == 0, result.output
        assert "gap closed" in result.stdout and result.stderr == ""

        def no_constant(name):
            raise AssertionError(f"{name} is not JSON")

        text = (tmp_path / "figures.json").read_text()
        figures = json.loads(text, parse_constant=no_constant)
        assert figures["held_out"] == 20 and figures["version"] == __version__
        (gap,) = figures["gaps"].values()
        assert f"{gap['fd_model']:.3f}" in result.stdout

    def test_evaluate_says_how_long_it_takes_once_it_can_be_done(self, home, run):
        command = [word for word in evaluate_command(home) if word != "--quiet"]
        said = run(*command).stderr
        assert "10 samples of 3 gradients, 20 images to read: about " in said
        assert "%|" not in said and "\r" not in said  # no bars where nobody looks
        assert "about" not in run(*command, "-n", 11).stderr
        assert in_words(0.1) == "1 s" and in_words(89) == "89 s" and in_words(90) == "1.5 min"
        assert in_words(3600) == "60 min" and in_words(5400) == "1.5 h"

    def test_evaluate_of_a_run_with_other_sampler_settings(self, home, run, tmp_path):
        of_model = ("prior", "--generator", home / "model", *generator_command(home)[1:])
        invoke(home, *of_model, "--validation", 20, "--out", tmp_path / "run")
        command = list(evaluate_command(home))
        command[1] = tmp_path / "run"
        result = run(*command, "--sampler", "annealed", "--step-scale", 0.5)
        assert result.exit_code == 0, result.output
        assert "annealed, 3 gradients" in result.stdout

    def test_evaluate_on_another_split(self, home, run):
        command = list(evaluate_command(home))
        command[3] = home / "labelled"
        result = run(*command[:6], "--split", "test", *command[8:], "--feature-steps", 2)
        assert result.exit_code == 0, result.output
        assert "20 held-out images" in result.stdout and "classifier of bright" in result.stdout

    def test_judge_and_control(self, home, run, tmp_path):
        result = run(*judge_command(home), "--out", tmp_path / "judge")
        assert result.exit_code == 0, result.output
        assert "on 40 held-out images" in result.stdout and result.stderr == ""
        more = ("--judge", tmp_path / "judge", "--guidance", "0,1.5", "--edit", "Smiling")
        more += ("--combine", "Smiling=yes", "--json", tmp_path / "figures.json")
        result = run(*control_command(home), "--control", *more)
        assert result.exit_code == 0, result.output
        assert "guidance 1.5" in result.stdout and "Edit Smiling=yes" in result.stdout
        figures = json.loads((tmp_path / "figures.json").read_text())
        assert list(figures["variables"]["Smiling"]["found"]) == ["0", "1.5"]
        assert (figures["num_images"], figures["held_out"]) == (4, 10)
        assert figures["edit"]["strength"] == 0.77 and len(figures["layers"]["distances"]) == 3
        assert figures["judge"]["columns"]["bright"]["count"] == 40

    def test_control_trains_a_judge_and_keeps_it(self, home, run):
        options = ("--control", "--judge-steps", 2, "--attributes", "Smiling", "--guidance", 1)
        first = run(*control_command(home), *options)
        assert first.exit_code == 0, first.output
        (kept,) = (home / "cache/judges").iterdir()
        stamp = kept.stat().st_mtime_ns
        again = run(*control_command(home), *options)
        assert kept.stat().st_mtime_ns == stamp
        assert again.stdout.splitlines()[1:] == first.stdout.splitlines()[1:]  # not the seconds

    def test_list_presets_and_version(self, run):
        result = run("--list-presets")
        assert result.exit_code == 0
        names = [line.split()[0] for line in result.stdout.splitlines()]
        assert names == sorted(names) and {"tiny", "celebahq"} <= set(names)
        assert run("--version").stdout == f"hebm-train {__version__}\n"


class TestMistakes:
    def test_unknown_preset(self, home, run, tmp_path):
        result = run(
            "generator", "--preset", "cats", "--data", home / "images", "--out", tmp_path / "r"
        )
        assert_refused(result, 2, "'cats' does not exist", "tiny")
        assert not (tmp_path / "r").exists()

    @pytest.mark.parametrize("command", [generator_command, prior_command])
    def test_data_that_is_not_there(self, home, run, tmp_path, command):
        more = ("--data", tmp_path / "absent", "--out", tmp_path / "run")
        assert_refused(run(*command(home), *more), 2, "no images at", "absent")

    def test_data_without_an_image(self, home, run, tmp_path):
        (tmp_path / "empty").mkdir()
        more = ("--data", tmp_path / "empty", "--out", tmp_path / "run")
        assert_refused(run(*generator_command(home), *more), 2, "no images in")

    @pytest.mark.parametrize("command", [generator_command, prior_command])
    def test_out_that_cannot_be_made(self, home, run, tmp_path, command):
        (tmp_path / "file").write_text("")
        result = run(*command(home), "--out", tmp_path / "file/run")
        assert_refused(result, 2, "cannot write to the folder", "is not a folder")

    @pytest.mark.parametrize("command", [generator_command, prior_command])
    def test_out_that_holds_a_run(self, home, run, tmp_path, command):
        result = run(*command(home), "--out", home / "generator")
        assert_refused(result, 2, "already holds a run", "--resume")

    @pytest.mark.parametrize("command", [generator_command, prior_command])
    def test_nothing_to_resume(self, home, run, tmp_path, command):
        result = run(*command(home), "--out", tmp_path / "run", "--resume")
        assert_refused(result, 2, "nothing to resume")

    def test_too_few_images(self, home, run, tmp_path):
        result = run(*generator_command(home), "--validation", 40, "--out", tmp_path / "run")
        assert_refused(result, 2, "40 images are to be held out", "0 to 39")
        assert not (tmp_path / "run").exists()

    def test_missing_generator(self, home, run, tmp_path):
        command = prior_command(home)
        (tmp_path / "folder").mkdir()
        for place in ("folder", "absent"):
            result = run(*command, "--generator", tmp_path / place, "--out", tmp_path / "run")
            assert result.exit_code in (1, 2)
            assert_refused(result, result.exit_code, place)
        assert not (tmp_path / "run").exists()

    def test_evaluate_without_a_prior(self, home, run, tmp_path):
        run(*generator_command(home), "--validation", 20, "--out", tmp_path / "run")
        command = list(evaluate_command(home))
        command[1] = tmp_path / "run"
        assert_refused(run(*command), 2, "no energy-based prior", "hebm-train prior")

    def test_evaluate_with_too_few_images(self, home, run):
        command = evaluate_command(home)
        assert_refused(run(*command, "-n", 11), 2, "10 to 10")
        assert_refused(run(*command, "--validation", 40), 2, "0 to 39")

    def test_evaluate_with_nowhere_to_write(self, home, run, tmp_path):
        result = run(*evaluate_command(home), "--json", "/dev/null/figures.json")
        assert_refused(result, 2, "/dev/null/figures.json")
        figures = tmp_path / "new/deep/figures.json"  # whose folders are made
        result = run(*evaluate_command(home), "--json", figures)
        assert result.exit_code == 0 and "bits" in json.loads(figures.read_text())

    @pytest.mark.parametrize(
        "options, words",
        [
            (("--guidance", "1"), ("--guidance",)),
            (("--control", "--feature-steps", 2), ("--feature-steps",)),
            (("--control", "--judge", "x", "--judge-steps", 2), ("leave one out",)),
            (
                ("--control", "--judge", "absent"),
                ("no attribute classifier absent", "hebm-train classifier"),
            ),
            (("--control", "--guidance", "1,much"), ("--guidance is '1,much'",)),
            (("--control", "--guidance", "-1"), ("guidance is -1",)),
            (("--control", "--attributes", "Smilin"), ("'Smiling'?",)),
            (("--control", "--combine", "Smiling=perhaps"), ("no value 'perhaps'",)),
            (("--control", "--edit", "Hat"), ("no symbol 'Hat'",)),
            (("--control", "--label-column", "Smiling"), ("write SYMBOL=COLUMN",)),
            (("--control", "--label-column", "class=kind"), ("no label column 'kind'",)),
            (("--split", "test", "--validation", 3), ("both given",)),
        ],
    )
    def test_control_options(self, home, run, options, words):
        command = control_command(home)
        if "--control" not in options:  # whose own options would be refused first
            command = tuple(x for x in command if x != "Smiling=bright" and x != "--label-column")
            command = command[: command.index("--layer-images")] + ("--device", "cpu", "--quiet")
        assert_refused(run(*command, *options), 2, *words)

    def test_control_of_a_model_without_symbols(self, home, run):
        command = list(control_command(home))
        command[1] = home / "model"
        assert_refused(run(*command, "--control"), 2, "has no symbols")

    def test_judge_of_what_is_not_there(self, home, run, tmp_path):
        command = judge_command(home)
        out = ("--out", tmp_path / "judge")
        assert_refused(run(*command, *out, "--column", "kind"), 2, "no label column 'kind'")
        assert_refused(run(*command, "--out", "/dev/null/judge"), 2, "/dev/null/judge")
        assert not (tmp_path / "judge").exists()

    def test_export_of_what_is_no_run_or_onto_a_file(self, home, run, tmp_path):
        result = run("export", "--run", tmp_path / "absent", "--out", tmp_path / "model")
        assert_refused(result, 2, "no whole checkpoint")
        (tmp_path / "file").write_text("kept")
        result = run("export", "--run", home / "generator", "--out", tmp_path / "file")
        assert_refused(result, 2, "is a file")
        assert (tmp_path / "file").read_text() == "kept"
        result = run("export", "--run", home / "generator", "--out", tmp_path, "--sampler", "hmc")
        assert_refused(result, 2, "'hmc' is not one of", "'flow'")

    def test_steps_and_a_time(self, home, run, tmp_path):
        result = run(*generator_command(home), "--time-budget", "3m", "--out", tmp_path / "run")
        assert_refused(result, 2, "--max-steps and --time-budget were both given")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("option", ["--time-budget", "--checkpoint-every"])
    @pytest.mark.parametrize("text", ["soon", "0s", "-3m", "nan"])
    def test_no_duration(self, home, run, tmp_path, option, text):
        command = ("generator", "--data", home / "images", "--out", tmp_path / "run")
        assert_refused(run(*command, f"{option}={text}"), 2, repr(text), "90s, 3m or 1.5h")

    @pytest.mark.parametrize(
        "options",
        [
            ("--max-steps", 0),
            ("--batch-size", "many"),
            ("--device", "tpu"),
            ("--objective", "score"),  # the generator has one only
            ("--learning-rate", 11),
        ],
    )
    def test_option_values(self, home, run, tmp_path, options):
        result = run(*generator_command(home), "--out", tmp_path / "run", *options)
        assert_refused(result, 2, options[0].strip("-").replace("-", "_").split("_")[0])

    def test_a_missing_option_and_an_unknown_command(self, home, run):
        assert_refused(run("generator", "--data", home / "images"), 2, "--out")
        assert_refused(run("train"), 2, "train")

    def test_without_accelerate(self, home, run, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "accelerate", None)
        result = run(*generator_command(home), "--out", tmp_path / "run")
        assert_refused(result, 1, '[train]"')
        assert not (tmp_path / "run").exists()

    def test_nothing_but_nan(self, home, run, tmp_path, monkeypatch):
        part = Run.part

        def broken(self, step, sampler):
            whole = part(self, step, sampler)
            return whole._replace(images=whole.images * float("nan"))

        monkeypatch.setattr(Run, "part", broken)
        command = (*generator_command(home), "--max-steps", 40, "--out", tmp_path / "run")
        assert_refused(run(*command), 1, "25 steps in a row had non-finite gradients")
        assert read_state(latest_checkpoint(tmp_path / "run"))["step"] in (0, 10, 20)
        assert not (tmp_path / "run/model").exists()

    def test_ctrl_c(self, home, run, tmp_path, monkeypatch):
        def interrupted(self, step, sampler):
            raise KeyboardInterrupt

        monkeypatch.setattr(Run, "part", interrupted)
        result = run(*generator_command(home), "--out", tmp_path / "run")
        assert_refused(result, 130, "interrupted")


@pytest.mark.parametrize(
    "text, seconds", [("90s", 90), ("3m", 180), ("1.5h", 5400), ("2d", 172800), ("45", 45)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "m", "3 minutes", "0.5s", "inf", "nan", "1e9h", "3mm"])
def test_no_durations(text):
    with pytest.raises(UserInputError, match="write for example 90s, 3m or 1.5h"):
        parse_duration(text)


def test_help_does_not_wait_for_torch():
    """Of the group and of each command."""
    script = """
import sys
from hebm_sample.cli.train import main
names = ("generator", "prior", "export", "evaluate", "classifier", "judge")
for arguments in ([], *([name] for name in names)):
    try:
        main([*arguments, "--help"])
    except SystemExit as left:
        assert left.code == 0
heavy = {"torch", "numpy", "PIL", "accelerate", "safetensors"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in (
        "--list-presets",
        "--time-budget",
        "--resume",
        "--objective",
        "--control",
        "hebm-eval",
    ):
        assert word in done.stdout


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "hebm_sample.training", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"hebm-train {__version__}\n"


def test_equal_commands_give_equal_weights(home, run, tmp_path):
    """Whatever was drawn from the global stream before."""
    found = []
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        assert run(*generator_command(home), "--out", tmp_path / name).exit_code == 0
        found.append((tmp_path / name / "model/generator.safetensors").read_bytes())
    assert found[0] == found[1]
