"""How Sphinx makes the site: scripts/docs runs it with the checkout as its source folder, and this folder for settings.

The checkout and not this folder, since pages link to notebooks, examples and SECURITY.md as they are seen on GitHub.
Everything works from a disk, without the internet: no font, script or picture comes from elsewhere.
"""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from docs.generators.command_line import literal_lines  # noqa: E402
from docs.generators.expansion import expand, without_folder_links  # noqa: E402
from docs.generators.mathml import visit_displayed, visit_inline  # noqa: E402
from docs.generators.public_api import short_signature  # noqa: E402
from lockstep.common.runtime.version import VERSION  # noqa: E402

project = "Lockstep"
author = copyright = "The Lockstep authors"  # noqa: A001  Sphinx's name for it
version = release = VERSION

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_click", "sphinx_copybutton"]

root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "notebooks/*.ipynb",
    "examples/README.md",
    "lockstep/common/data/mnist/README.md",
    "*.md",
]
exclude_patterns = [
    *("**/.*", "docs/_build", "docs/generators", "**/__pycache__", "README.md", "**/runs"),
    *("common", "deploy", "ps", "scripts", "tests", "worker"),
]

# Pages are Markdown; notebooks are shown with the outputs that they were saved with.
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_merge_streams = True

# Dashes stay as they are: `--model` can be pasted from anywhere.
smartquotes = False

# A single backtick in a docstring means code, as in Markdown.
default_role = "code"
add_module_names = False
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

# A reference to nothing is an error in pages; in signatures there are types of NumPy and the like.
nitpicky = True
nitpick_ignore_regex = [("py:(class|data|exc|meth|attr)", ".*")]

html_theme = "furo"
html_title = "Lockstep"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True


def setup(app: Any) -> None:
    """Add what this project does itself: generated parts of pages, and formulas that need no script."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_displayed, None))
    app.connect("source-read", _expand)
    app.connect("autodoc-process-signature", _shorten)
    app.connect("sphinx-click-process-description", _keep_lines)


def _expand(app: Any, name: str, source: list[str]) -> None:
    source[0] = without_folder_links(expand(source[0]), (ROOT / name).parent)


def _keep_lines(app: Any, context: Any, lines: list[str]) -> None:
    lines[:] = literal_lines(lines)


def _shorten(app: Any, what: str, name: str, member: Any, options: Any, signature: str | None, returns: Any) -> Any:
    return (short_signature(signature) if signature else signature), returns
