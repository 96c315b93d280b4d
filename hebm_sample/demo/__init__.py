"""A page to play with a model in: `hebm-demo`, or `python -m hebm_sample.demo`.

    recipes     what was done to get an image, and the lines of Python and shell that do it again
    actions     the work: draw, vary, read, reconstruct, edit; values in, images out
    studio      which models are offered, and which are in memory
    view        images, energies and messages as HTML
    controls    the three tabs on the left
    handlers    what the buttons do
    page        the page itself, and how it is served

Only the last three know gradio (the extra `demo`).
"""

__all__: list[str] = []
