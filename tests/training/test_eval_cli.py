"""`hebm-eval` as it is typed: a subcommand has its own options only, and the earlier spelling says
which line is the same and does it.

Without this an option is silently without effect, or an old script measures something else.
"""

import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny import symbolic_pipeline, tiny_config, tiny_pipeline
from toy import draw_images

from hebm_sample import Pipeline, __version__
from hebm_sample.cli.evaluation.legacy import translated
from hebm_sample.cli.evaluation.main import main
from hebm_sample.cli.train import main as train

OWN = {
    "distances": {"--data", "--feature-steps", "-n", "--sampler", "--json"},
    "control": {"--data", "--classifier", "--guidance", "-n", "--sampler", "--json"},
    "ood": {"--data", "--ood", "-n", "--sampler", "--json"},
    "report": {"--data", "--out", "--parts", "--ood", "--baseline", "--classifier", "-n"},
    "compare": {"--size", "--inception", "--json"},
}
NOT = {
    "distances": {"--classifier", "--ood", "--size", "--out", "--parts"},
    "control": {"--feature-steps", "--ood", "--size", "--out", "--parts"},
    "ood": {"--classifier", "--feature-steps", "--size", "--out", "--parts", "--baseline"},
    "report": {"--size", "--json"},
    "compare": {"--data", "-n", "--sampler", "--classifier", "--device"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("eval")
    draw_images(home / "images", count=60)
    draw_images(home / "other", count=12, seed=3)
    for part, seed in (("train", 0), ("test", 1)):
        draw_images(home / "labelled" / part, count=24, seed=seed, labels=True)
    tiny_pipeline().save_pretrained(home / "model")
    symbolic_pipeline().save_pretrained(home / "symbolic")
    return home


def run(home, *arguments, command=main):
    env = {"HEBM_CACHE": str(home / "cache")}
    return CliRunner().invoke(command, [str(a) for a in arguments], env=env)


def distances_of(home):
    where = (home / "model", "--data", home / "images", "--validation", 40)
    return (*where, "-n", 10, "--steps", 3, "--device", "cpu")


@pytest.mark.parametrize("name", ["distances", "ood"])
def test_few_held_out_images_need_no_number(home, name):
    words = [w for w in distances_of(home) if w not in ("-n", 10)]
    more = ("--ood", f"other={home / 'other'}") if name == "ood" else ()
    result = run(home, name, *words, *more, "--quiet", "--json", home / f"{name}.json")
    assert result.exit_code == 0, result.output
    found = json.loads((home / f"{name}.json").read_text())
    if name == "distances":
        assert found["held_out"] == 40
    else:
        assert "20" in result.stdout


@pytest.mark.parametrize("name", OWN)
def test_a_subcommand_has_its_own_options_only(name):
    options = {o for p in main.commands[name].params for o in p.opts}
    assert OWN[name] <= options and not NOT[name] & options


@pytest.mark.parametrize(
    "typed, same",
    [
        ("m", "distances m"),
        ("m --data d -n 10 --json f", "distances m --data d -n 10 --json f"),
        ("--steps 3 m --data=d", "distances --steps 3 m --data d"),
        ("m --data d --control --guidance -1", "control m --data d --guidance -1"),
        ("m --data d -n10 --control --quiet", "control m --data d -n10 --quiet"),
        ("m --report out --parts hole", "report m --out out --parts hole"),
        ("m --report=out --ood --control=x", "report m --out out --ood --control=x"),
        ("--compare a b --size 32", "compare a b --size 32"),
        ("--quiet --compare a b", "compare --quiet a b"),
    ],
)
def test_the_earlier_spelling_is_translated(typed, same):
    assert translated(typed.split()) == same.split()


def test_the_earlier_spelling_says_the_new_one_and_does_the_same(home, tmp_path):
    arguments = distances_of(home)
    old = run(home, "evaluate", *arguments, "--json", tmp_path / "old", command=train)
    new = run(home, "distances", *arguments, "--json", tmp_path / "new")
    assert old.exit_code == new.exit_code == 0, old.output + new.output
    line = next(x for x in old.stderr.splitlines() if x.startswith("hebm-train evaluate is now: "))
    assert line.split(": ", 1)[1].startswith(f"hebm-eval distances {home / 'model'} --data ")
    figures = [json.loads((tmp_path / name).read_text()) for name in ("old", "new")]
    for found in figures:
        assert found["version"] == __version__
        found |= {"seconds": 0, "sampling_seconds": 0}
    assert figures[0] == figures[1]
    quiet = run(home, "evaluate", *arguments, "--quiet", command=train)
    assert quiet.exit_code == 0 and quiet.stderr == ""


def test_ood_alone(home, tmp_path):
    more = ("--ood", f"other={home / 'other'}", "--quiet", "--json", tmp_path / "f.json")
    result = run(home, "ood", *distances_of(home), *more)
    assert result.exit_code == 0, result.output
    assert "Out-of-distribution" in result.stdout and "![" not in result.stdout
    found = json.loads((tmp_path / "f.json").read_text())
    assert set(found["auroc"]) == {"other", "noise", "blur", "one colour", "inverted"}
    assert found["counts"]["other"] == 10
    wrong = run(home, "ood", *distances_of(home), "--ood", "other")
    assert wrong.exit_code == 2 and "write NAME=SOURCE" in wrong.stderr
    draw_images(tmp_path / "one", count=1, seed=2)
    for name, said in (
        ("noise", "--ood names 'noise', which is measured anyway (held-out, noise, blur, one col"),
        ("held-out", "--ood names 'held-out', which is measured anyway"),
        ("other", f"--ood other: {tmp_path / 'one'} has one image; an AUROC needs 2"),
    ):
        wrong = run(home, "ood", *distances_of(home), "--ood", f"{name}={tmp_path / 'one'}")
        assert wrong.exit_code == 2 and said in wrong.stderr
    single = run(home, "ood", *distances_of(home), "--batch", 1)
    assert single.exit_code == 0, single.output


@pytest.mark.parametrize(
    "options, said",
    [
        (("--guidance", "foo"), "--guidance is 'foo'; write numbers"),
        (("--combine", "Smiling=maybe"), "maybe"),
        (("--attributes", "Smilling"), "Smiling"),
        (("--edit", "class=z"), "class"),
        (("--label-column", "Smiling=brihgt"), "bright"),
    ],
)
def test_a_reports_control_options_are_read_first(home, tmp_path, options, said):
    where = ("--data", home / "labelled", "--validation", 10, "-n", 4, "--device", "cpu")
    more = (
        options if "--label-column" in options else ("--label-column", "Smiling=bright", *options)
    )
    out = tmp_path / "out"
    result = run(home, "report", home / "symbolic", *where, "--out", out, "--parts", "gap", *more)
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert not list(out.rglob("*.json")) and not (out / "draws").exists()


@pytest.mark.parametrize(
    "line", [["compare", "", "x"], ["distances", ""], ["report", "", "--out", "o"]]
)
def test_nothing_is_no_place(home, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    result = run(home, *line)
    assert result.exit_code == 2 and "is empty; give a" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_was_read_is_said_first(home, tmp_path):
    """Two folders and out-of-distribution images are data as all others."""
    for part in ("train", "test"):
        draw_images(tmp_path / "a" / part, count=6)
    draw_images(tmp_path / "b", count=6, seed=1)
    (tmp_path / "b/x.heic").touch()
    result = run(home, "compare", tmp_path / "a", tmp_path / "b", "--size", 16)
    lines = [line for line in result.stderr.splitlines() if line.startswith(str(tmp_path))]
    assert lines == [
        f"{tmp_path / 'a'}: 6 images; no labels; none held out; left out: 6 of test/",
        f"{tmp_path / 'b'}: 6 images; no labels; none held out; left out: 1 .heic",
    ]
    result = run(home, "ood", *distances_of(home), "--ood", f"other={tmp_path / 'b'}")
    assert f"other: {tmp_path / 'b'}: 6 images; left out: 1 .heic" in result.stderr.splitlines()
    assert "scores of 60 images in 6 sets, and 10 that the combination is fitted to: about " in (
        result.stderr
    )


def test_control_with_a_classifier_that_was_trained(home, tmp_path):
    where = ("--data", home / "labelled", "--validation", 0, "--device", "cpu", "--quiet")
    size = ("--size", 16, "--column", "bright", "--steps", 2)
    for name in ("classifier", "judge"):
        out = ("--out", tmp_path / name)
        result = run(home, name, *where, *size, *out, command=train)
        assert result.exit_code == 0, result.output
        assert f"classifier: 2 steps; {tmp_path / name}" in result.stdout
    tensors = [load_file(tmp_path / name) for name in ("judge", "classifier")]
    assert all(torch.equal(tensors[0][key], value) for key, value in tensors[1].items())
    command = ("control", home / "symbolic", *where, "--label-column", "Smiling=bright")
    command += ("-n", 4, "--steps", 3, "--layer-images", 0, "--held-out", 10, "--guidance", 1)
    for option in ("--classifier", "--judge"):
        result = run(home, *command, option, tmp_path / "classifier")
        assert result.exit_code == 0, result.output
        assert "guidance 1" in result.stdout
    both = run(home, *command, "--classifier", "x", "--judge-steps", 2)
    assert both.exit_code == 2 and "leave one out" in both.stderr


def test_a_classifier_that_knows_the_held_out_rows_is_refused(home, tmp_path):
    """Its accuracy on them is no upper bound of anything."""
    data = ("--data", home / "labelled", "--device", "cpu", "--quiet")
    size = ("--size", 16, "--column", "bright", "--steps", 2)
    out = ("--out", tmp_path / "classifier")
    result = run(home, "classifier", *data, "--validation", 4, *size, *out, command=train)
    assert result.exit_code == 0, result.output
    command = ("control", home / "symbolic", *data, "--label-column", "Smiling=bright", "-n", 2)
    command += ("--steps", 3, "--layer-images", 0, "--held-out", 4, "--guidance", 1)
    command += ("--classifier", tmp_path / "classifier", "--json", tmp_path / "f.json")
    result = run(home, *command, "--validation", 10)
    assert result.exit_code == 2 and "trained with other rows held out" in result.stderr
    result = run(home, *command, "--validation", 4)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["weights"] == Pipeline.from_pretrained(home / "symbolic").weights_hash
    assert found["data"]["held_out"].endswith("]")


def test_help_does_not_wait_for_torch():
    script = """
import sys
from hebm_sample.cli.evaluation.main import main
for arguments in ([], *([name] for name in main.commands)):
    try:
        main([*arguments, "--help"])
    except SystemExit as left:
        assert left.code == 0
heavy = {"torch", "numpy", "PIL", "accelerate", "safetensors"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_sampler_is_measured_as_it_is_asked_for(home, tmp_path):
    """Every field of the sampler that an option gives, in the figures and in the samples."""
    asked = ("--temperature", 0.8, "--particles", 2, "--sampler", "annealed", "--steps", 12)
    asked += ("--step-scale", 0.5)
    pipe = tiny_pipeline(tiny_config(start="ancestral"))
    pipe.save_pretrained(tmp_path / "model")
    data = ("--data", home / "images", "--validation", 40, "-n", 10, "--device", "cpu")
    found = []
    for options in (asked, asked[2:]):
        json_path = tmp_path / f"{len(found)}.json"
        done = run(home, "distances", tmp_path / "model", *data, *options, "--json", json_path)
        assert done.exit_code == 0, done.output
        found.append(json.loads(json_path.read_text()))
    calm, own = found
    assert calm["sampling"] == own["sampling"] | {"temperature": 0.8}
    assert (calm["sampling"]["particles"], calm["sampling"]["step_scale"]) == (2, 0.5)
    space = next(iter(calm["gaps"]))
    assert calm["gaps"][space]["fd_model"] != own["gaps"][space]["fd_model"]
    assert calm["gaps"][space]["fd_gauss"] == own["gaps"][space]["fd_gauss"]
    refused = run(home, "distances", tmp_path / "model", *data, "--temperature", "nan")
    assert refused.exit_code == 2 and "Traceback" not in refused.output
