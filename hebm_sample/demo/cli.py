"""The command `hebm-demo`: serve the page until Ctrl-C.

gradio is imported after the options are checked, and torch when a model is loaded.
"""

import os
import signal
import sys
import tempfile
import threading
from importlib.util import find_spec
from types import FrameType

import click

from hebm_sample import __version__
from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.options import CONTEXT, ModelType, dataset, device
from hebm_sample.cli.printing import say
from hebm_sample.errors import EnvironmentFailure
from hebm_sample.io.extras import missing_extra

__all__ = ["main"]

_LOCAL = ("127.0.0.1", "localhost", "::1")


@click.command(
    cls=OneLineErrors,
    context_settings=CONTEXT,
)
@click.argument("models", nargs=-1, type=ModelType(), metavar="[MODEL]...")
@dataset(
    "The same as MODEL: name, Hub repository id or folder. Repeatable.  [default: all that are "
    "embedded]",
    "names",
    multiple=True,
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Port.  [default: the first free from 7860]"
)
@device()
@click.version_option(__version__, message="hebm-demo %(version)s")
def main(
    models: tuple[str, ...], names: tuple[str, ...], host: str, port: int | None, device: str
) -> None:
    """Serve a page to sample, vary and edit images in, of each MODEL.

    Only this machine can open it, unless --host says otherwise; there is no password.
    """
    if find_spec("gradio") is None:
        raise missing_extra("gradio", "demo")
    with tempfile.TemporaryDirectory(prefix="hebm-demo-", ignore_cleanup_errors=True) as cache:
        # gradio reads these when it is imported, which is not before the next lines.
        os.environ["GRADIO_TEMP_DIR"] = cache
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        _serve(tuple(dict.fromkeys((*models, *names))), host, port, device)


def _serve(names: tuple[str, ...], host: str, port: int | None, device: str) -> None:
    from hebm_sample.demo.studio import Studio, offers
    from hebm_sample.pipeline.runtime.process import tune_process

    tune_process()
    studio = Studio(offers(names, device))
    from hebm_sample.demo.page import build, launch

    page = build(studio)
    try:
        address = launch(page, host, port)
    except OSError as error:
        where = "from 7860 to 7959" if port is None else str(port)
        raise EnvironmentFailure(
            f"cannot listen on {host}, port {where}: it is taken, or not this machine's; "
            "give another --port or --host"
        ) from error
    say(f"{address}  (Ctrl-C ends it)")
    if host not in _LOCAL:
        say("Whoever reaches this machine can use the page.", err=True)
    try:
        _wait()
    finally:
        page.close(verbose=False)


def _wait() -> None:
    """Until Ctrl-C, or the signal that ends services."""
    ended = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        ended.set()

    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), end)
    while not ended.wait(3600):
        pass
    sys.stderr.flush()
