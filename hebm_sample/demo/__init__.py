"""A page to play with a model in: `hebm-demo`, or `python -m hebm_sample.demo`.

    steps       how an image came about, and what its file is called
    options     a step's options, as the commands read them
    recipes     the lines of Python and shell that do it again
    images      images on the page, and what the model says of them
    actions     the work: draw, vary, reconstruct, edit; values in, images out
    composing   more of it: inpaint, mix, interpolate
    photos      a visitor's image: read, its face aligned and put back
    drawings    images to click, drawn by code
    studio      which models are offered, and which are in memory
    visitors    who is there, and what each of them has
    quotas      the door that every request passes: how much one visitor can take
    view        images, energies and messages as HTML
    client      what runs in the visitor's browser
    controls    the tabs on the left
    handlers    what the buttons do
    page        the page itself
    serving     how it is served

Only the last four know gradio (the extra `demo`).
"""

__all__: list[str] = []
