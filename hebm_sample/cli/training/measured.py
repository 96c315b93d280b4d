"""What a recipe measures of the model that it has made, a stage after another:

    crop           where its data have eyes and mouths, of a preset of faces    model/config.json
    calibration    the scores of held-out images                        model/calibration.json
    evaluation     distances and the gap closed, of latents in `draws`  evaluation.json

A stage that was done is not done again. What cannot be measured, such as with few held-out images,
is said in a line, and is no failure of what was trained.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hebm_sample import __version__
from hebm_sample.cli.evaluation.calibrate import some_of
from hebm_sample.cli.evaluation.crop import crop_line, measured_crop
from hebm_sample.cli.evaluation.options import open_sets_of, write_json
from hebm_sample.cli.printing import say
from hebm_sample.errors import EnvironmentFailure, NonFiniteSampleError, UserInputError

__all__ = ["EVALUATION", "FEWEST", "IMAGES", "Measured"]

IMAGES = 2000  # in each set of the evaluation, and of the other measurements at most
FEWEST = 10
FEWEST_CROPPED = 200
CROP, EVALUATION, DRAWS = "crop.json", "evaluation.json", "draws"


@dataclass(frozen=True)
class Measured:
    """The measurements of the model in `folder`/model.

    Arguments:
        folder: The recipe's.
        data: Their source.
        scale: Of the recipe: a rehearsal takes its share of the images.
        device: Where to compute.
        quiet: Without bars.
    """

    folder: Path
    data: str
    scale: float
    device: str
    quiet: bool

    def model(self) -> Any:
        """As it was written."""
        from hebm_sample.cli.trained import model_to_measure

        return model_to_measure(str(self.place), self.device)

    @property
    def place(self) -> Path:
        """The model's folder."""
        return self.folder / "model"

    @cached_property
    def sets(self) -> Any:
        """Training and held-out images; opened when a stage is not done."""
        options = {"validation": None, "split": None, "quiet": self.quiet}
        return open_sets_of(self.model(), self.data, options)

    def crop(self) -> None:
        """Measure the crop of the data, unless the model states one, or they have no faces."""
        from hebm_sample.hub.manifest import read_row
        from hebm_sample.hub.save import write_config

        loaded = read_row(self.place)
        model, path = self.model(), self.folder / CROP
        if model.config.crop is not None or _known(path).get("weights") == model.weights_hash:
            return
        count = max(FEWEST_CROPPED, round(IMAGES * self.scale))
        try:
            found = measured_crop(self.sets[0], count, self.quiet)
        except EnvironmentFailure as error:  # such as without the extra, which can be installed
            say(f"no crop: {error}", err=True)
            return
        except UserInputError as error:
            say(f"no crop: {error}", err=True)
            write_json(path, {"weights": model.weights_hash, "crop": None, "reason": str(error)})
            return
        write_config(self.place, replace(model.config, crop=found), loaded=loaded)
        say(f"crop: {crop_line(found)}")

    def calibrate(self) -> None:
        """Write the calibration of the model's scores, unless it has one."""
        from hebm_sample.evaluation.calibration import calibrate
        from hebm_sample.hub.manifest import read_row
        from hebm_sample.hub.save import write_calibration
        from hebm_sample.metrics.typicality import FEWEST_IMAGES

        loaded = read_row(self.place)
        model = self.model()
        if model.calibration is not None:
            return
        count = max(FEWEST_IMAGES, round(IMAGES * self.scale))
        try:
            images = some_of(self.sets[1], count).images
            found = calibrate(model, images, progress=not self.quiet)
        except UserInputError as error:
            say(f"not calibrated: {error}", err=True)
            return
        write_calibration(self.place, found, loaded=loaded)
        say(f"calibration: of {len(images)} held-out images")

    def evaluate(self, count: int) -> None:
        """Measure the model's distances on `count` images of each set."""
        from hebm_sample.evaluation.distances import evaluate

        if not count:
            return
        model, path = self.model(), self.folder / EVALUATION
        asked = {"weights": model.weights_hash, "num_images": count}
        # Another sampler, and another version that may measure otherwise, measure anew.
        wanted = asked | {"sampling": model.sampling_config().to_dict(), "version": __version__}
        known = _known(path)
        if wanted == {name: known.get(name) for name in wanted}:
            return
        try:
            training, held_out = self.sets
            result = evaluate(
                model,
                training,
                held_out,
                num_images=max(FEWEST, min(count, len(held_out) // 2)),
                folder=self.folder / DRAWS,
                progress=not self.quiet,
                announce=lambda text: None if self.quiet else say(text, err=True),
            )
        except (UserInputError, NonFiniteSampleError) as error:
            say(f"not evaluated: {error}", err=True)
            return
        write_json(path, result.to_dict() | asked)
        say(result.table())


def _known(path: Path) -> dict[str, Any]:
    """What was measured before; nothing where there is nothing that can be read."""
    from hebm_sample.io.files import parse_json
    from hebm_sample.io.kept import damaged

    try:
        return dict(parse_json(path.read_bytes())) if path.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        damaged(path, error)
        return {}
