"""Draws the pictures of what was measured, if they show something else than docs/measured.json has.

    python -m docs.generators.pictures

A picture holds the digest of the rows that it shows, so that a test can tell without drawing it.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from docs.generators.measured import ROOT, Report
from lockstep.bench.bench import Bench, Panel
from lockstep.bench.performance import MeasuredPart
from lockstep.bench.plot import figure_of
from lockstep.bench.scaling import ScalingBench, ScalingRow
from lockstep.bench.step import StepBench, StepFigures
from lockstep.bench.straggler import StragglerBench, StragglerRow
from lockstep.results.reports.plots.style import save

IMAGES = ROOT / "docs" / "images"

#: The pictures of one part each: the part, its bench, and its rows.
OF_PARTS: dict[str, tuple[str, Bench[Any], type[msgspec.Struct]]] = {
    "bench-step.png": ("step", StepBench(), StepFigures),
    "bench-scaling.png": ("scaling", ScalingBench(), ScalingRow),
    "bench-straggler.png": ("straggler", StragglerBench(), StragglerRow),
}


class Picture(NamedTuple):
    """A picture that can be drawn."""

    name: str
    #: Of the rows that it shows.
    digest: str
    panels: Callable[[], Sequence[Sequence[Panel]]]


def pictures(report: Report) -> Iterator[Picture]:
    """Yield the pictures of the parts that a report has."""
    parts = report.measurements.parts
    for name, (part, bench, kind) in OF_PARTS.items():
        if part in parts:
            yield Picture(name, digest_of(parts[part]), partial(_panels, bench, kind, parts[part]))


def _panels(bench: Bench[Any], kind: type[msgspec.Struct], part: MeasuredPart) -> Sequence[Sequence[Panel]]:
    return bench.panels(part.rows_as(kind))


def digest_of(*parts: MeasuredPart) -> str:
    """Return the digest of the rows of parts."""
    return hashlib.sha256(msgspec.json.encode([part.rows for part in parts])).hexdigest()


def is_current(picture: Path, digest: str) -> bool:
    """Return whether a picture shows the rows of that digest."""
    return picture.exists() and digest.encode() in picture.read_bytes()


def main(report: Report | None = None, folder: Path = IMAGES) -> None:
    """Draw all pictures that are not current."""
    for name, digest, panels in pictures(report or Report()):
        if not is_current(folder / name, digest):
            save(figure_of(panels()), folder / name, source=digest)
            print(f"drew {name}")


if __name__ == "__main__":
    main()
