"""Makes the pictures in a notebook small: plots need no more than 256 colours, and a repository keeps every version."""

import base64
import io
from typing import Any

from PIL import Image

from tests.notebooks.folder import Notebook, code_cells

#: What one byte a pixel can tell apart.
COLOURS = 256


def with_small_pictures(notebook: Notebook) -> Notebook:
    """Make each PNG among the outputs smaller where that is possible, in place; return the notebook."""
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            _shrink(output.get("data", {}))
    return notebook


def _shrink(data: dict[str, Any]) -> None:
    if "image/png" in data:
        picture = base64.b64decode("".join(data["image/png"]))
        data["image/png"] = base64.b64encode(small(picture)).decode()


def small(png: bytes) -> bytes:
    """Return the same picture with a palette, or as it is where that is smaller."""
    # Plots have no transparency that a page would show: on white, as Jupyter shows them.
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    opaque = Image.new("RGBA", picture.size, "white")
    opaque.alpha_composite(picture)
    with_palette = opaque.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    with_palette.save(buffer, "PNG", optimize=True)
    return min(buffer.getvalue(), png, key=len)
