"""Formulas as MathML at build time, with docutils's own converter.

MathJax, Sphinx's default, is a script that each reader's browser fetches from somewhere else.
Browsers draw MathML themselves, so pages that hold it need no script and no network.
"""

from xml.etree import ElementTree

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

_LOG = logging.getLogger(__name__)
_ACCENTS = "\u02c9\u02c6\u02dc\u02d9\u00af^~"  # bar, hat, tilde, dot
_APPLY = "\u2061"


def mathml(latex: str, block: bool) -> str:
    """The formula as MathML; raises docutils's `MathError` for what it cannot read."""
    text = latex2mathml.tex2mathml(latex, as_block=block).replace("&ApplyFunction;", _APPLY)
    root = ElementTree.fromstring(text.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', ""))
    for parent in list(root.iter()):
        _lower_subscripts(parent)
        _space_functions(parent)
        if parent.tag == "mtd" and len(parent) and parent[0].tag == "mo":
            parent[0].set("form", "infix")  # what stands before it is in the column before
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _lower_subscripts(element: ElementTree.Element) -> None:
    r"""The converter sets the t of \bar a_t below the a; it belongs beside it."""
    if element.tag != "munderover" or (element[2].text or "") not in _ACCENTS:
        return
    base, below, accent = list(element)
    accent.text = "\u00af" if accent.text == "\u02c9" else accent.text  # fonts lack the other bar
    accented = ElementTree.Element("mover")
    accented.extend([base, accent])
    element.clear()
    element.tag = "msub"
    element.extend([accented, below])


def _space_functions(parent: ElementTree.Element) -> None:
    """A thin space in log p, and none in log(p), as TeX has it."""
    children = list(parent)
    for sign, following in zip(children, children[1:], strict=False):
        if sign.text == _APPLY and following.tag != "mo":
            sign.tag, sign.text = "mspace", None
            sign.set("width", "0.167em")


def _shown(node: nodes.Element, block: bool) -> str:
    try:
        return mathml(node.astext(), block)
    except MathError as error:  # a warning, which the build turns into an error
        _LOG.warning("formula %r: %s", node.astext(), error, location=node)
        return ""


def _inline(self, node: nodes.math) -> None:
    self.body.append(_shown(node, block=False))
    raise nodes.SkipNode


def _displayed(self, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math notranslate nohighlight"))
    self.body.append(_shown(node, block=True) + "</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_inline, None), (_displayed, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
