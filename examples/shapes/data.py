"""Draws pictures of circles, squares and triangles, of different sizes, into a folder for each: needs pillow.

python examples/shapes/data.py
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COUNT, KINDS = 400, ("circle", "square", "triangle")


def main(to: Path, count: int = COUNT) -> None:
    """Write so many pictures of each kind."""
    rng = np.random.Generator(np.random.Philox(2026))
    for kind in KINDS:
        (to / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(kind, rng).save(to / kind / f"{number:04}.png")
    print(f"wrote {to}: {count} pictures of each of {', '.join(KINDS)}")


def picture(kind: str, rng: np.random.Generator) -> Image.Image:
    """Return a picture of one shape, somewhere, in some colour, on another."""
    width, height = (int(side) for side in rng.integers(40, 80, 2))
    paper, ink = (tuple(int(value) for value in rng.integers(low, high, 3)) for low, high in ((150, 256), (0, 120)))
    image = Image.new("RGB", (width, height), paper)
    radius = rng.uniform(0.3, 0.45) * min(width, height)
    x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
    corners = {"circle": 40, "square": 4, "triangle": 3}[kind]
    turn = np.pi / corners * (corners != 3) - np.pi / 2 * (corners == 3) + rng.uniform(-0.2, 0.2)
    angles = turn + 2 * np.pi * np.arange(corners) / corners
    outline = [(float(x + radius * np.cos(angle)), float(y + radius * np.sin(angle))) for angle in angles]
    ImageDraw.Draw(image).polygon(outline, fill=ink)
    return image


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/shapes"))
