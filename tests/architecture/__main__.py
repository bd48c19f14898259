"""`scripts/figures`: print how much there is, and lower the limits."""

import json

import click

from tests.architecture.figures import LIMITS, Figure, Tree, figures_of, limits, lowered, start_up
from tests.architecture.source import ROOT


@click.command()
@click.option("--places", "are_places_shown", is_flag=True, help="name all places that a figure counts")
@click.option("--record", "is_recording", is_flag=True, help="lower the limits to the figures that are below them")
def figures(are_places_shown: bool, is_recording: bool) -> None:
    """Print the figures of the sources next to their limits, which the tests of the architecture keep.

    A figure above its limit fails a test. To raise a limit on purpose, edit it, and give the reason in the commit.
    """
    found = [*figures_of(Tree.read(ROOT)), start_up()]
    table = limits()
    for figure in found:
        print(row(figure, table.get(figure.name)))
        places = figure.places if are_places_shown else figure.places[:1] if figure.is_of_one_place else ()
        for place in places:
            print(f"        {place}")
    allowed = lowered(found, table)
    if is_recording:
        LIMITS.write_text(json.dumps(allowed, indent=2) + "\n", encoding="utf-8")
    elif allowed != table:
        print("scripts/figures --record lowers the limits of smaller figures")


def row(figure: Figure, limit: int | None) -> str:
    """Return the line of a figure."""
    verdict = "no limit" if limit is None else f"limit {limit:,}" + " EXCEEDED" * (figure.value > limit)
    return f"{figure.value:>7,}  {figure.name:<64}  {verdict}"


figures()
