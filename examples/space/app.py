"""The demo as a Space: `python app.py` serves the page of `hebm-demo` with the embedded models.

The Space's machine says where to listen (GRADIO_SERVER_NAME); anywhere else only this machine can
open the page.
"""

import os

from hebm_sample.demo.page import build, launch
from hebm_sample.demo.studio import Studio, offers
from hebm_sample.pipeline.runtime.process import tune_process

page = build(Studio(offers([], "auto")))

if __name__ == "__main__":
    tune_process()
    print(launch(page, os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), None), flush=True)
    page.block_thread()
