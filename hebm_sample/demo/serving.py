"""How the page is served: behind its door, from a thread, in the visitor's own fonts."""

import threading
import time
from collections.abc import Iterable
from typing import Any

import gradio as gr
from gradio.themes import Base, Soft
from starlette.middleware import Middleware

from hebm_sample.demo import client
from hebm_sample.demo.photos import MAX_UPLOAD_BYTES
from hebm_sample.demo.quotas import Door, Job, Limits
from hebm_sample.demo.visitors import MOST_VISITORS, Visitors

__all__ = ["Page", "launch"]

MOST_WAITING = 16
SWEEP = 300.0  # seconds


class Page(gr.Blocks):
    """A page, and who is there.

    Attributes:
        visitors: Those that its handlers know.
    """

    visitors: Visitors

    def jobs(self) -> Iterable[Job]:
        """All that run or wait. Gradio has no public list of them."""
        return list(self._queue.event_ids_to_events.values())

    def forget(self, session: str) -> None:
        """What gradio keeps of a session that has gone."""
        self.state_holder.session_data.pop(session, None)
        self.state_holder.time_last_used.pop(session, None)


def launch(
    page: Page, host: str, port: int | None, limits: Limits | None = None, **options: Any
) -> str:
    """Serve it from a thread; its address.

    Arguments:
        host, port: Where to listen; without a port the first free one from 7860 on.
        limits: What one visitor can take.
        options: As of `gr.Blocks.launch`.

    Raises:
        OSError: The port is taken, or there is no such host.
    """
    # Closed: what asks for a job without the queue.
    page.queue(max_size=MOST_WAITING, default_concurrency_limit=1, api_open=False)
    page.visitors.forgotten = page.forget
    threading.Thread(target=_sweep, args=(page.visitors,), daemon=True).start()
    door = Middleware(Door, visitors=page.visitors, jobs=page.jobs, limits=limits)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=MAX_UPLOAD_BYTES,
        state_session_capacity=2 * MOST_VISITORS,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=[],
        theme=_theme(),
        head=f"<style>{client.CSS}</style>",  # gradio would put words before its selectors
        app_kwargs={"middleware": [door]},
        **options,
    )
    return str(address)


def _sweep(visitors: Visitors) -> None:
    """Forget those who did nothing for an hour, though nobody else comes."""
    while True:
        time.sleep(SWEEP)
        visitors.forget_expired()


def _theme() -> Base:
    """Plain, and in the visitor's own fonts: none is fetched."""
    theme = Soft(
        primary_hue="teal",
        neutral_hue="stone",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return theme.set(
        body_background_fill="*neutral_50",
        block_title_background_fill="none",
        block_title_text_color="*body_text_color",
        block_title_padding="0",
        block_label_background_fill="none",
        block_label_text_color="*body_text_color",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
    )
