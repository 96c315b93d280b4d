"""One base for all five commands: the same short options, words in any spelling, and options of
other tools that are answered by what they mean.

Without this a hand learns `-o` in one command and is refused in the next.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner
from tiny import symbolic_config, tiny_pipeline

from hebm_sample.cli import edit, sample, train
from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.evaluation import main as evaluation
from hebm_sample.cli.options import ModelType
from hebm_sample.cli.requests.edit import EditOptions
from hebm_sample.cli.requests.grammar import BatchType, WordType
from hebm_sample.cli.requests.sample import SampleOptions
from hebm_sample.cli.trained import DurationType
from hebm_sample.cli.work.editing import _say_chosen
from hebm_sample.cli.work.model import with_known_names
from hebm_sample.config import SymbolConfig
from hebm_sample.demo import cli as demo
from hebm_sample.io.spelling import known_value, known_values
from hebm_sample.presets.settings import parse_validation

ALL = {
    "hebm-sample": sample.main,
    "hebm-edit": edit.main,
    "hebm-eval": evaluation.main,
    "hebm-train": train.main,
    "hebm-demo": demo.main,
}


def commands():
    """Every command by the words that start it."""
    for name, command in ALL.items():
        yield name, command
        for part, sub in getattr(command, "commands", {}).items():
            yield f"{name} {part}", sub


COMMANDS = dict(commands())


def run(line, *more):
    name = max((c for c in ALL if line.startswith(c)), key=len)
    words = line.removeprefix(name).split()
    return CliRunner().invoke(ALL[name], [*words, *map(str, more)])


# The base


@pytest.mark.parametrize("name", COMMANDS)
def test_all_commands_stand_on_one_base(name):
    command = COMMANDS[name]
    assert isinstance(command, OneLineErrors)
    shorts = {"--out": {"-o"}, "--num-images": {"-n", "--num"}, "--dataset": {"-d"}}
    for parameter in command.params:
        for long, needed in shorts.items():
            if long in parameter.opts:
                assert needed <= set(parameter.opts), (name, long)
        if isinstance(parameter.type, click.Choice):
            assert isinstance(parameter.type, WordType), (name, parameter.name)
        is_model = re.search(r"\bMODEL\b", parameter.metavar or "") or parameter.name == "model"
        if is_model and name != "hebm-train evaluate":
            assert isinstance(parameter.type, ModelType), (name, parameter.name)


@pytest.mark.parametrize("name", ["distances", "control", "ood", "report"])
def test_a_model_is_named_with_dataset_or_without(name, tmp_path):
    more = {"report": f"-o {tmp_path}/r"}.get(name, "")
    more += "" if name in ("distances", "report") else f" --data {tmp_path}"
    answers = [
        run(f"hebm-eval {name} {model} {more}")
        for model in ("no-such", "-d no-such", "--dataset no-such no-such")
    ]
    assert {a.exit_code for a in answers} == {2} and len({a.stderr for a in answers}) == 1
    assert "no-such" in answers[0].stderr
    assert "give one" in run(f"hebm-eval {name} -d a b {more}").stderr
    assert "Missing argument 'MODEL'" in run(f"hebm-eval {name} {more}").stderr


@pytest.mark.parametrize(
    "kind, typed, meant",
    [
        (ModelType(), "Celeba_HQ", "celebahq"),
        (ModelType(), "CelebAHQ_64", "celebahq-64"),
        (ModelType(), "./Folder", "./Folder"),
        (WordType(["joint-ebm", "ddpm"]), "Joint_EBM", "joint-ebm"),
        (BatchType(), "AUTO", 0),
        (DurationType(), "3M", 180.0),
    ],
)
def test_words_are_folded(kind, typed, meant):
    assert kind.convert(typed, None, None) == meant


def test_held_out_rows_are_folded():
    assert parse_validation("HASH") is None and parse_validation("Last:40") == 40


@pytest.mark.parametrize(
    "line",
    [
        "hebm-eval distances CelebaHQ --sampler Flow --device CPU --data absent",
        "hebm-eval control CelebaHQ --edit-method FLOW --device CPU --data absent",
        "hebm-eval report CelebaHQ --parts GAP,Prior_Hole -o x/y --data absent",
        "hebm-train generator --preset Tiny --dtype BFLOAT16 --validation HASH --data absent -o x",
        "hebm-train prior --objective MLE --generator CelebaHQ --preset TINY --data absent -o x",
        "hebm-train recipe Tiny --device CPU --data absent -o x",
        "hebm-train baseline DDPM --generator CIFAR10 --data absent -o x",
    ],
)
def test_spellings_go_through_to_the_data(line, tmp_path, monkeypatch):
    """Which are not there: everything before them was understood."""
    monkeypatch.chdir(tmp_path)
    result = run(line)
    assert result.exit_code == 2 and "absent" in result.stderr, result.stderr


# By meaning


@pytest.mark.parametrize(
    "line, meant",
    [
        ("hebm-sample --net x", ["--dataset"]),
        ("hebm-sample --res 64", ["--resolution"]),
        ("hebm-sample --format png", ["--out faces.webp"]),
        ("hebm-sample --cfg-scale 3", ["--guidance"]),
        ("hebm-sample --gpus 3", ["docs/many-gpus.md"]),
        ("hebm-edit interpolate --steps 3", ["--num-images"]),
        ("hebm-edit inpaint -n 3", ["--seeds"]),
        ("hebm-edit edit --batch_size 3", ["--batch"]),
        ("hebm-train prior --lr 1", ["--learning-rate"]),
        ("hebm-train prior --epochs 1", ["--max-steps", "--time-budget"]),
        ("hebm-train prior --duration 1", ["--max-steps", "--time-budget"]),
        ("hebm-train prior --kimg 1", ["--max-steps"]),
        ("hebm-train prior --steps 1", ["--max-steps"]),
        ("hebm-train prior --cond 1", ["--labels"]),
        ("hebm-train generator --gpus 8", ["docs/many-gpus.md"]),
        ("hebm-train generator --weight_decay 0", ["--set"]),
        ("hebm-train generator --dataset x", ["--data"]),
        ("hebm-train recipe --epochs 1", ["--scale"]),
        ("hebm-train classifier --epochs 1", ["--steps"]),
        ("hebm-train export --license x", ["--licence"]),
        ("hebm-train calibrate --model x", ["FOLDER"]),
        ("hebm-eval distances --batch-size 1", ["--batch"]),
        ("hebm-eval distances --output x", ["--json"]),
        ("hebm-demo --model x", ["--dataset"]),
        ("hebm-demo --share", ["--host"]),
        ("hebm-train prior --learn 1", ["--learning-rate"]),
        ("hebm-train prior --sead 1", ["--seed"]),
    ],
)
def test_other_tools_options_are_known_by_meaning(line, meant):
    result = run(line)
    assert result.exit_code == 2 and result.stderr.startswith("Error: No such option")
    said = result.stderr.partition(".")[2]
    assert all(word in said for word in meant) and "--help" not in said, result.stderr
    assert said.count("Did you mean") <= 1 and said.count(" or '") <= 1


def test_a_launcher_is_named_where_it_shares_the_work():
    for line in ("hebm-sample --gpus 2", "hebm-train generator --num-gpus 2"):
        assert "torchrun" in run(line).stderr
    assert "torchrun" not in run("hebm-edit edit --gpus 2").stderr


@pytest.mark.parametrize("line", ["hebm-demo --epochs 3", "hebm-sample --qqq", "hebm-edit --lr"])
def test_what_means_nothing_here_suggests_nothing(line):
    word = line.split()[1]
    assert run(line).stderr == f"Error: No such option '{word}'.\n"


# Names and values of a model


@pytest.mark.parametrize(
    "typed, values, meant",
    [
        ("True", ("no", "yes"), "yes"),
        ("-1", ("no", "yes"), "no"),
        ("yes", ("False", "True"), "True"),
        ("0", ("No", "Yes"), "No"),
        ("~Y", ("no", "yes"), "~yes"),
        ("1", ("1", "2"), "1"),
        ("yes", ("1", "2"), "yes"),
        ("polar bear", ("cat", "polar_bear"), "polar_bear"),
        ("Zürich!", ("Z_rich", "Bern"), "Z_rich"),
        ("?", ("_", "a"), "?"),
    ],
)
def test_values_are_folded(typed, values, meant):
    assert known_value(typed, values) == meant


@pytest.mark.parametrize(
    "items, values, meant",
    [
        (("Paris", "France"), ("Paris_France", "Rome"), ("Paris_France",)),
        (("~Paris", "France", "rome"), ("Paris_France", "Rome"), ("~Paris_France", "Rome")),
        (("a", "b"), ("a", "b", "a_b"), ("a", "b")),
        (("Paris", "Texas"), ("Paris_France", "Rome"), ("Paris", "Texas")),
    ],
)
def test_values_with_commas_are_put_together(items, values, meant):
    assert known_values(items, values) == meant


SAMPLE = {p.name: None for p in sample.main.params if p.name not in ("model", "verify", "help")}
SAMPLE |= {"dataset": "m", "device": "cpu", "dtype": "float32", "batch": 16, "offline": False}
SAMPLE |= {"layers": False, "trajectory": False, "gaussian_prior": False, "skip_existing": False}
SAMPLE |= {"list_models": False, "classes": (), "attributes": (), "guidance": ()}
SAMPLE.pop("version", None)


@pytest.fixture(scope="module")
def pipe():
    config = symbolic_config()
    place = SymbolConfig("Place", ("Paris_France", "Rome"))
    prior = config.prior.__class__(
        **{
            **{f: getattr(config.prior, f) for f in config.prior.__dataclass_fields__},
            "symbols": (*config.prior.symbols, place),
        }
    )
    return tiny_pipeline(config.__class__(config.name, config.generator, prior, config.sampling))


@pytest.mark.parametrize(
    "attributes, guidance, symbols, weights",
    [
        ((("smiling", ("yes",)),), (("SMILING", 2.0),), {"Smiling": "yes"}, {"Smiling": 2.0}),
        ((("CLASS", ("A",)),), (("class", 2.0),), {"class": "a"}, {"class": 2.0}),
        (
            (("place", ("paris", "France")), ("Smiling", ("1",))),
            (("Place", 3.0),),
            {"Place": "Paris_France", "Smiling": "yes"},
            {"Place": 3.0, "Smiling": 1.0},
        ),
    ],
)
def test_guidance_is_folded_as_its_condition_is(pipe, attributes, guidance, symbols, weights):
    typed = SampleOptions(**SAMPLE | {"attributes": attributes, "guidance": guidance})
    options = with_known_names(typed, pipe)
    assert options.symbols == symbols and options.weights == weights


# Faces


def test_which_of_several_faces_was_taken_is_said(capsys):
    faces = [SimpleNamespace(count=n) for n in (1, 3)]
    framed, sources = SimpleNamespace(aligned=faces), [Path("a.jpg"), Path("b.jpg")]
    for face, quiet in ((1, False), (None, True), (None, False)):
        _say_chosen(SimpleNamespace(face=face, quiet=quiet), framed, sources)
    _say_chosen(SimpleNamespace(face=None, quiet=False), SimpleNamespace(aligned=None), sources)
    said = "b.jpg: the largest of 3 faces; --face K takes another, numbered from the left\n"
    assert capsys.readouterr().err == said


# Seeds


def chosen(**more):
    return SampleOptions(**SAMPLE | more).chosen_seeds


def test_a_seed_and_a_number_are_so_many_seeds_as_in_python():
    assert chosen(seeds=(7,), num_images=4) == (7, 8, 9, 10)
    assert chosen(seeds=(7,)) == (7,) and chosen(num_images=3) == (0, 1, 2)
    varied = {"from_seed": 3, "keep_top": 1}
    assert chosen(**varied, num_images=2) == (4, 5)
    assert chosen(**varied, num_images=2, seeds=(9,)) == (9, 10)
    edit_options = {p.name: None for p in edit.main.commands["edit"].params if p.name != "help"}
    edit_options |= {n: SAMPLE[n] for n in ("dataset", "device", "dtype", "batch", "offline")}
    edit_options |= {"classes": (), "attributes": (), "guidance": (), "strength": 0.5}
    edit_options |= {"method": "flow", "align": False, "paste_back": False, "images": ("a", "b")}
    assert EditOptions(**edit_options | {"seeds": (3,)}).chosen_seeds == (3, 4)
    assert EditOptions(**edit_options).chosen_seeds == (0, 1)


@pytest.mark.parametrize(
    "words, message",
    [
        ("-n 2 --seed 4294967295", "2 seeds from 4294967295 on go beyond the last"),
        ("-n 3 --seeds 1,2", "--num-images is 3, but --seeds names 2"),
    ],
)
def test_seeds_that_do_not_fit_are_refused(words, message):
    assert message in run(f"hebm-sample celebahq {words}").stderr


def test_the_file_tells_all_its_seeds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_pipeline().save_pretrained("model")
    files = []
    for words in ("-n 3 --seed 7", "--seeds 7-9"):
        done = run(f"hebm-sample ./model {words} --device cpu --json --overwrite -o a.png")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["seeds"] == [7, 8, 9]
        files.append((tmp_path / "a.png").read_bytes())
    assert files[0] == files[1]
