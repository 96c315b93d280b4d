"""What the commands print, and what becomes of it where nobody can read it.

    standard output     a reader of a pipe who has left changes nothing; a full disk is an error
    standard error      notes and bars: whatever happens to them changes nothing
    an encoding         characters that it has not are written as in Python's errors, `\\xe9`
    closed              as if it were the null device

Results are on disk before they are printed, and the exit status is that of the work.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, cast

from hebm_sample.errors import EnvironmentFailure

__all__ = ["lasting_streams", "say"]

# On Windows a pipe without a reader is an invalid argument.
_NO_READER = {errno.EPIPE, errno.ESHUTDOWN} | ({errno.EINVAL} if os.name == "nt" else set())

# All of ASCII and Latin-1 but the ends of lines and tabs.
_CONTROLS = {code: "?" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def say(text: str, *, err: bool = False) -> None:
    """Print a line, or several, in whatever encoding the stream has.

    Arguments:
        text: Without the last line's end.
        err: To the standard error: notes, which must not get into a file of results.

    What controls a terminal is a `?`: names of files can hold anything.
    """
    stream = cast("Any", sys.stderr if err else sys.stdout)
    if stream is None:  # closed
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = text.translate(_CONTROLS)
    stream.write(f"{text}\n".encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """While a command runs, none of the three streams is missing, and none ends it.

    Raises:
        EnvironmentFailure: From whoever writes to a standard output that is a file or a device
            and takes no more.
    """
    usual = sys.stdin, sys.stdout, sys.stderr
    _open_descriptors()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    streams = sys.stdout, sys.stderr
    former = [_write_any_character(stream) for stream in streams]
    sys.stdout, sys.stderr = cast("Any", (_Lasting(streams[0], False), _Lasting(streams[1], True)))
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = usual
        for stream, errors in zip(streams, former, strict=True):
            _Lasting(stream, True).flush()
            if errors is not None:
                with contextlib.suppress(OSError, ValueError):
                    cast("Any", stream).reconfigure(errors=errors)


class _Lasting:
    """A stream whose readers may leave.

    Arguments:
        stream: Where it writes to.
        forgiving: Whether no failure at all is one.
    """

    def __init__(self, stream: Any, forgiving: bool) -> None:
        self._stream, self._forgiving = stream, forgiving
        self._failure: EnvironmentFailure | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """The number of characters, as of any stream."""
        with self._forgiven():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As of any stream."""
        with self._forgiven():
            self._stream.flush()

    @contextlib.contextmanager
    def _forgiven(self) -> Iterator[None]:
        if self._failure is not None:  # click tries streams, and passes over what they raise
            raise self._failure
        try:
            yield
        except OSError as error:
            _silence(self._stream)
            if not (self._forgiving or error.errno in _NO_READER):
                self._failure = EnvironmentFailure(
                    f"cannot write to the standard output: {error.strerror or error}; free some "
                    "space, or print to another place"
                )
                raise self._failure from error


def _silence(stream: Any) -> None:
    """From now on to the null device: what is left in the buffer would fail again when Python
    ends, and change the exit status.
    """
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)
        stream.flush()


def _open_descriptors() -> None:
    """Descriptors 0 to 2 that are closed would become those of the next files that are opened, and
    what libraries print would go into these.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # the lowest that is free


def _write_any_character(stream: Any) -> str | None:
    """What the stream did until now with a character that its encoding has not."""
    if not hasattr(stream, "reconfigure"):
        return None
    former: str = stream.errors
    stream.reconfigure(errors="backslashreplace")
    return former
