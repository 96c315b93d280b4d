"""What cannot end well is refused before the work: outputs that cannot be written, numbers that
are none, ranges that hold nothing.
"""

import os

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import tiny_pipeline

from hebm_sample.cli.edit import main as edit
from hebm_sample.cli.evaluation.main import main as evaluation
from hebm_sample.cli.sample import main as sample
from hebm_sample.cli.train import main as train
from hebm_sample.config import LangevinConfig
from hebm_sample.config.sampler import MAX_FACTORS
from hebm_sample.errors import UserInputError
from hebm_sample.evaluation.control_results import ControlPlan
from hebm_sample.metrics.frechet import frechet_standard_error
from hebm_sample.metrics.kernel import kernel_distance
from hebm_sample.metrics.neighbours import nearest

NOWHERE = "/proc/hebm_sample/x" if os.path.isdir("/proc") else "/dev/null/x"
# With what each command takes besides, so that only its output is wrong.
WITH_FILES = {
    "classifier": (train, "classifier --data absent --size 16 --column a --out"),
    "distances": (evaluation, "distances absent --data absent --json"),
    "control": (evaluation, "control absent --data absent --json"),
    "ood": (evaluation, "ood absent --data absent --json"),
    "compare": (evaluation, "compare absent absent --json"),
}
WITH_FOLDERS = {
    "generator": (train, "generator --preset tiny --data absent --out"),
    "recipe": (train, "recipe tiny --data absent --out"),
    "report": (evaluation, "report absent --data absent --out"),
}


def refused(command, words, *more):
    result = CliRunner().invoke(command, [*words.split(), *more])
    assert result.exit_code in (1, 2) and result.stderr.startswith("Error: "), result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize("name", WITH_FILES)
def test_files_are_checked_before_the_work(name, tmp_path):
    command, words = WITH_FILES[name]
    there = tmp_path / "there"
    there.write_text("mine")
    assert "is there already" in refused(command, words, str(there))
    assert "add --overwrite" in refused(command, words, str(there))
    assert "absent" in refused(command, words, str(there), "--overwrite")  # the data, the model
    assert "absent" in refused(command, words, str(tmp_path / "no/file"))  # folders are made
    assert not (tmp_path / "no").exists()
    assert "is a directory" in refused(command, words, str(tmp_path))
    for path in ("/proc/x", "/dev/null/x"):
        assert path in refused(command, words, path)
    assert there.read_text() == "mine"


@pytest.mark.parametrize("name", WITH_FOLDERS)
def test_folders_are_checked_before_the_work(name, tmp_path):
    command, words = WITH_FOLDERS[name]
    (tmp_path / "file").write_text("mine")
    for path in (NOWHERE, str(tmp_path / "file/run")):
        assert "absent" not in refused(command, words, path)


def test_a_calibration_is_checked_before_the_work(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    (tmp_path / "model/calibration.json").mkdir()
    said = refused(train, f"calibrate {tmp_path / 'model'} --data absent")
    assert "calibration.json" in said and "is a folder" in said


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1"])
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (sample, "--dataset x --temperature"),
        (sample, "--dataset x --class a --guidance"),
        (sample, "--dataset x --trajectory --out a.gif --seconds"),
        (edit, "edit a.png --dataset x --strength"),
        (edit, "inpaint a.png --dataset x --mask m.png --weight"),
        (evaluation, "distances m --step-scale"),
        (evaluation, "control m --data d --strength"),
        (evaluation, "control m --data d --edit-guidance"),
        (train, "generator --data d --out o --learning-rate"),
        (train, "generator --data d --out o --time-budget"),
        (train, "recipe tiny --data d --out o --scale"),
        (train, "export --run r --out o --step-scale"),
    ],
    ids=str,
)
def test_numbers_that_are_none(command, words, value):
    result = CliRunner().invoke(command, [*words.split(), value])
    assert result.exit_code == 2 and result.stderr.startswith("Error: "), result.output
    assert result.stderr.count("\n") == 1


def test_lists_have_an_end():
    long = ",".join(["1"] * 100_000)
    said = refused(sample, "--dataset x --temperature", long)
    assert "100000 numbers are too many" in said and len(said) < 200
    for several in ((), (1.0,) * (MAX_FACTORS + 1)):
        with pytest.raises(UserInputError, match="temperature has"):
            LangevinConfig(temperature=several)
        with pytest.raises(UserInputError, match="guidance has"):
            ControlPlan(guidance=several)
    assert LangevinConfig(temperature=[0.5, 1.0]).temperature == (0.5, 1.0)


def test_no_range_is_said_that_holds_nothing():
    few = np.zeros((3, 2))
    for measure in (kernel_distance, frechet_standard_error):
        with pytest.raises(UserInputError, match="too few") as caught:
            measure(few, few)
        assert " to " not in str(caught.value)
    with pytest.raises(UserInputError, match="there is no neighbour"):
        nearest(few[:1], few[:1], 1, among_itself=True)
