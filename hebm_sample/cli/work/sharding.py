"""Which seeds this process samples, where many images go to one folder.

    share     of the batches 0, 1, 2, ... process r of W takes r, r + W, ...: the same batches, so
              the same images as from one process
    auto      how many images fit at a time differs between processes and from start to start: with
              `--batch auto` `BLOCK` seeds are shared out in the place of a batch
    resume    DIR/.unfinished-r lies in the folder from before the first image until after the
              last. Where it is found, the run before was stopped, and an image whose text says
              what this run would write into it is not sampled again.

r and W are RANK and WORLD_SIZE, which `accelerate launch` and `torchrun` set. Nothing is sent
between the processes.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hebm_sample.errors import EnvironmentFailure, UserInputError

__all__ = ["BLOCK", "Share", "unfinished"]

BLOCK = 16  # seeds; the default batch
MARK = ".unfinished-"


@dataclass(frozen=True)
class Share:
    """Process `rank` of `size`; `local_rank` of those on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> "Share":
        """As the launcher says; alone without one.

        Raises:
            UserInputError: RANK and WORLD_SIZE make no sense.
        """
        texts = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
        rank, size, local = (int(text) if text.isdecimal() else None for text in texts)
        if not texts[1] or size == 1:
            return cls()
        if rank is None or not size or rank >= size:
            raise UserInputError(
                f"RANK is {texts[0]!r} and WORLD_SIZE {texts[1]!r}; they must be 0 to W-1 and W: "
                "start with accelerate launch or torchrun, or unset both"
            )
        return cls(rank, size, rank if local is None else local)

    def take(self, seeds: Sequence[int], batch: int) -> list[int]:
        """This process's seeds: whole batches, by turns.

        Arguments:
            batch: The same in all processes, and in one that starts again.
        """
        batches = [seeds[i : i + batch] for i in range(0, len(seeds), batch)]
        return [seed for some in batches[self.rank :: self.size] for seed in some]

    def device(self, device: str) -> str:
        """This process's own GPU, where a machine has several."""
        if self.size == 1 or device == "cpu":
            return device
        import torch

        count = torch.cuda.device_count()
        return f"cuda:{self.local_rank % count}" if count else device


@contextmanager
def unfinished(folder: Path, share: Share) -> Iterator[bool]:
    """Marks the folder while this process samples; gives whether a run before was stopped."""
    mark = folder / f"{MARK}{share.rank}"
    stopped, is_new = any(folder.glob(f"{MARK}*")), not os.path.exists(folder)
    was_marked = mark.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise EnvironmentFailure(f"cannot write to {folder}: {error.strerror}") from error
    try:
        yield stopped
    except BaseException:
        if not (was_marked or _has_made(folder, mark)):  # nothing to go on from
            mark.unlink(missing_ok=True)
            if is_new:
                with suppress(OSError):
                    folder.rmdir()
        raise
    mark.unlink(missing_ok=True)
    # Whoever ends last has all seeds done: marks of a run of more processes are out of date too.
    if not any((folder / f"{MARK}{rank}").exists() for rank in range(share.size)):
        for old in folder.glob(f"{MARK}*"):
            old.unlink(missing_ok=True)


def _has_made(folder: Path, mark: Path) -> bool:
    """Whether an image is as young as the mark; a run that is refused makes none."""
    try:
        begun = mark.stat().st_mtime_ns
    except OSError:  # another command that fills the folder has ended, and taken it away
        return True
    return any(path.stat().st_mtime_ns >= begun for path in folder.glob("*.png"))
