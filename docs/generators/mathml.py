"""Formulas as MathML, which browsers show by themselves: MathJax would be loaded from the internet."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

#: Sizes of brackets, which MathML stretches by itself.
_SIZES = re.compile(r"\\(?:big|Big|bigg|Bigg)[lr]?(?![A-Za-z])")


def visit_inline(translator: Any, node: Any) -> None:
    """Write a formula in a line."""
    translator.body.append(_mathml(node))
    raise nodes.SkipNode


def visit_displayed(translator: Any, node: Any) -> None:
    """Write a formula on lines of its own."""
    translator.body.append(f'<div class="math">{_mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def _mathml(node: Any, *, as_block: bool = False) -> str:
    return str(tex2mathml(_SIZES.sub("", node.astext()), as_block=as_block))
