"""What a caller sees of a chain on its way: a bar, a callback after each gradient.

progress=None       a bar in a terminal and in a notebook, nothing elsewhere
progress=True       a bar, wherever it goes
progress=False      none
progress=function   function(n) after every n gradients, and no bar
callback=function   function(step, total, level) after each gradient
"""

import difflib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from hebm_sample.errors import UserInputError

__all__ = ["Callback", "Progress", "Watch", "check_bar_options", "check_watchers"]

Progress = Callable[[int], object]
Callback = Callable[[int, int, int], object]
_T = TypeVar("_T")


def check_watchers(progress: Any, callback: Any) -> None:
    """Raise `UserInputError` for what can neither be shown nor called."""
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise UserInputError(
            f"progress is {progress!r}; it can be True, False, or a function of the number of "
            "gradients just evaluated"
        )
    if callback is not None and not callable(callback):
        raise UserInputError(f"callback is {callback!r}; give a function of step, total and level")


def check_bar_options(options: Mapping[str, Any]) -> None:
    """Raise `UserInputError` for what a bar has no option of, now and not in the next call."""
    from tqdm import tqdm

    own = {"self", "iterable", "total", "kwargs"}
    known = set(inspect.signature(tqdm.__init__).parameters) - own
    unknown = sorted(set(options) - known)
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserInputError(
            f"a progress bar has no option {unknown[0]!r}{hint}; it has {', '.join(sorted(known))}"
        )


def _in_notebook() -> bool:
    """Whether this process is a notebook's."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())


@dataclass
class Watch:
    """Counts a request's gradients, shows them and passes them on.

    An exception that the callback raises ends the chains, and reaches the caller as it is; the
    pipeline is as it was before.

    Arguments:
        total: Gradients of all batches.
        progress: As above.
        callback: As above.
        bar_options: Of `tqdm`, in the place of its own.
    """

    total: int
    progress: Progress | bool | None = None
    callback: Callback | None = None
    bar_options: Mapping[str, Any] = field(default_factory=dict)
    done: int = 0
    _bar: Any = None

    def of_walk(self, level: int) -> "_Walk":
        """For the chains of one batch, which are about to come to this level."""
        return _Walk(self, level)

    def step(self, evaluations: int, level: int) -> None:
        """So many gradients have just been evaluated."""
        if callable(self.progress):
            self.progress(evaluations)
        elif self.progress is not False:
            self._shown(evaluations)
        for _ in range(evaluations):
            self.done += 1
            if self.callback is not None:
                self.callback(self.done, self.total, level)

    def _shown(self, evaluations: int) -> None:
        if self._bar is None:
            with warnings.catch_warnings():  # a notebook without widgets has a bar of text
                warnings.simplefilter("ignore")
                from tqdm.auto import tqdm
            # None: tqdm asks whether it is a terminal.
            silent = False if self.progress is True or _in_notebook() else None
            options = {"unit": "grad", "leave": False, "disable": silent, **self.bar_options}
            if self.progress is True:  # what a call says counts for more
                options["disable"] = False
            self._bar = tqdm(total=self.total, **cast("Any", options))
        self._bar.update(evaluations)

    def over(self, states: Iterator[_T]) -> Iterator[_T]:
        """The same states; the bar is closed when they end, for whatever reason."""
        try:
            yield from states
        finally:
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@dataclass
class _Walk:
    """The chains of one batch: what they report, with the level that they are at."""

    watch: Watch
    level: int

    def __call__(self, evaluations: int) -> None:
        self.watch.step(evaluations, self.level)

    def over(self, states: Iterator[_T]) -> Iterator[_T]:
        """The same states, which say what level is done."""
        for state in states:
            self.level = max(0, cast("Any", state).level - 1)
            yield state
