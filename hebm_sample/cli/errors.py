"""How the commands fail: one line on stderr, `Error: ...`, and an exit status; never a traceback.
Warnings of ours are a line `Warning: ...` there, too.

2  what was typed is wrong        1  the surroundings fail        130  Ctrl-C
"""

import errno
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from hebm_sample.cli.meanings import advice
from hebm_sample.cli.printing import lasting_streams, say
from hebm_sample.errors import HebmError
from hebm_sample.io.files import short

__all__ = ["OneLineErrors"]

# New in click 8.2; older releases show the help without raising.
_NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
_PLACES = ("DIR", "FILE", "MODEL", "SOURCE")  # of options whose type is a text


class _Failure(click.ClickException):
    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        # click declares a class variable, and reads it from the instance.
        self.exit_code = exit_code  # pyright: ignore[reportAttributeAccessIssue]


def _leave(message: str, exit_code: int) -> NoReturn:
    line = " ".join(part.strip() for part in message.splitlines())
    say(f"Error: {line}", err=True)
    sys.exit(exit_code)


def _show_help(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        say(ctx.get_help())
        ctx.exit()


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Without the place in the source: it tells a person at a terminal nothing."""
    usual = warnings.formatwarning

    def one_line(message: Any, category: type[Warning], *place: Any) -> str:
        if category is not UserWarning:
            return usual(message, category, *place)
        return f"Warning: {' '.join(str(message).split())}\n"

    warnings.formatwarning = one_line
    try:
        with warnings.catch_warnings():
            # Of large images: those that are too large are refused, in one line.
            warnings.filterwarnings("ignore", "Image size .* exceeds limit of")
            yield
    finally:
        warnings.formatwarning = usual


def _is_place(parameter: click.Parameter) -> bool:
    """Whether it names a file, a folder, data, or a model."""
    # Without a model at all, --dataset says what there is.
    is_model = parameter.type.name == "model" and "--dataset" not in parameter.opts
    named = (is_model or parameter.type is click.STRING) and parameter.metavar in _PLACES
    return named or isinstance(parameter.type, click.Path)


def _words_of(parameter: click.Parameter) -> list[str]:
    """An option's names; of an argument what help calls it."""
    if isinstance(parameter, click.Argument):
        return [(parameter.name or "").upper()]
    return [*parameter.opts, *parameter.secondary_opts]


def _holds_empty(value: Any) -> bool:
    return any(map(_holds_empty, value)) if isinstance(value, (list, tuple)) else value == ""


class OneLineErrors(click.Command):
    """A click command (or, mixed into `click.Group`, a group) whose every error is one line.

    `HebmError` leaves with its own exit status, an unexpected `OSError` or lack of memory with 1,
    Ctrl-C with 130, and click's usage errors with 2 and without the usage text.
    """

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """click's, printed as all else is."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.callback = _show_help
        return option

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click, but an unknown option names the one that means it, and an empty text is no
        place: pathlib takes it for the current folder.
        """
        try:
            self._check_places(ctx, args)
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            # click itself compares letters only.
            known = [word for p in self.get_params(ctx) for word in _words_of(p)]
            hint = advice(error.option_name, known)
            message = f"No such option {error.option_name!r}.{hint and f' {hint}'}"
            raise click.UsageError(message, ctx=ctx) from None

    def _check_places(self, ctx: click.Context, args: list[str]) -> None:
        places = [p for p in self.get_params(ctx) if _is_place(p)]
        if places and not ctx.resilient_parsing:
            typed = self.make_parser(ctx).parse_args(list(args))[0]
            for parameter in places:
                if _holds_empty(typed.get(parameter.name or "")):
                    raise click.BadParameter("it is empty; give a path", ctx, parameter)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it raises becomes a click exception with its exit status."""
        try:
            return super().invoke(ctx)
        except HebmError as error:
            raise _Failure(str(error), error.exit_code) from error
        except KeyboardInterrupt as error:
            raise _Failure("interrupted", 130) from error
        except MemoryError as error:
            raise _Failure("out of memory; try a smaller batch", 1) from error
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                name = short(str(error.filename or ""))
                raise _Failure(f"the name {name} is too long for a file", 2) from error
            raise _Failure(str(error), 1) from error

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """As `click.Command.main`, but with one line for every error."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)
        with lasting_streams():
            self._main(*args, **extra)

    def _main(self, *args: Any, **extra: Any) -> NoReturn:
        try:
            with _one_line_warnings():
                result = super().main(*args, standalone_mode=False, **extra)
        except _NO_ARGUMENTS as error:
            error.show()  # a group called without a command answers with its whole help
            sys.exit(error.exit_code)
        except click.ClickException as error:
            _leave(error.format_message(), error.exit_code)
        except (HebmError, OSError) as error:  # of help that cannot be printed
            _leave(str(error), 1)
        except click.Abort:
            _leave("interrupted", 130)
        # Outside its standalone mode click returns the status of --help and the like.
        sys.exit(result if isinstance(result, int) else 0)
