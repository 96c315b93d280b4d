"""Which models the page offers, and which of them are in memory."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hebm_sample.config import ModelConfig
from hebm_sample.demo.steps import ModelName

if TYPE_CHECKING:
    from hebm_sample.pipeline.pipeline import Pipeline

__all__ = ["Offer", "Studio", "offers", "positive"]

MOST_LOADED = 3


@dataclass(frozen=True)
class Offer:
    """A model that visitors can choose.

    Arguments:
        name: What loads it.
        config: Its description.
        licence: Of its weights and of images made with them.
        weak: Symbols that were measured to steer weakly.
    """

    name: ModelName
    config: ModelConfig
    licence: str
    weak: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What it is called in a list."""
        side = self.config.generator.image_size
        return f"{self.config.name} · {side}×{side}"

    @property
    def symbols(self) -> dict[str, tuple[str, ...]]:
        """What can be asked, as `Pipeline.symbols`."""
        table = self.config.prior.symbols if self.config.prior is not None else ()
        return {symbol.name: symbol.values for symbol in table}

    @property
    def groups(self) -> int:
        """L."""
        return len(self.config.generator.latent_shapes)

    @property
    def temperature(self) -> float:
        """The model's own; of one for each group their mean, which then stands for them."""
        own = self.config.sampling.temperature
        return sum(own) / len(own) if isinstance(own, tuple) else float(own)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Side of each group's maps, top to bottom."""
        return tuple(shape[1] for shape in self.config.generator.latent_shapes)


def positive(name: str, values: Sequence[str]) -> str | None:
    """What a symbol such as `No_Beard` denies: shown as it is, its "no" would be a double
    negative. None for the others.
    """
    denies = set(values) == {"no", "yes"} and name[:3].lower() in ("no_", "no ")
    return name[3:] or None if denies else None


def offers(names: Sequence[str], device: str) -> list[Offer]:
    """What `--dataset` names; all embedded models, in each resolution, if it names none.

    Raises:
        UserInputError: There is no such model.
        WeightsError, HubError: It is damaged, or cannot be had.
    """
    from hebm_sample.hub.load import read_config
    from hebm_sample.hub.manifest import list_models
    from hebm_sample.hub.resolve import locate

    rows = [row for row in list_models() if row.folder is not None]
    several = {row.name for row in rows if not row.default}
    asked: list[tuple[str, int | None]] = [(name, None) for name in names]
    for row in () if names else rows:
        asked.append((row.name, row.resolution if row.name in several else None))
    found = []
    for name, resolution in asked:
        model = locate(name, resolution=resolution)
        config = read_config(model)
        row = model.row
        found.append(Offer(ModelName(name, resolution, device), config, row.licence, row.weak))
    return found


class Studio:
    """Loads models when they are first asked for, and keeps the last few.

    Arguments:
        offers: What there is to load.
        most: How many are kept.
    """

    def __init__(self, offers: Sequence[Offer], most: int = MOST_LOADED) -> None:
        self.offers: dict[str, Offer] = {}
        for number, offer in enumerate(offers, start=1):
            label = offer.label if offer.label not in self.offers else f"{offer.label} ({number})"
            self.offers[label] = offer
        self._most, self._loading = most, threading.Lock()
        self._loaded: OrderedDict[ModelName, Pipeline] = OrderedDict()

    def pipeline(self, name: ModelName) -> "Pipeline":
        """The model, from memory or from its files."""
        from hebm_sample.pipeline.pipeline import Pipeline

        with self._loading:
            pipe = self._loaded.pop(name, None)
            if pipe is None:
                pipe = Pipeline.from_pretrained(
                    name.dataset, resolution=name.resolution, device=name.device
                )
            self._loaded[name] = pipe
            while len(self._loaded) > self._most:
                self._loaded.popitem(last=False)
            return pipe
