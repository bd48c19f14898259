"""`scripts/figures`: print how much there is."""

import click

from tests.architecture.figures import Figure, Tree, figures_of, limits, start_up
from tests.architecture.source import ROOT


@click.command()
@click.option("--places", "are_places_shown", is_flag=True, help="name all places that a figure counts")
def figures(are_places_shown: bool) -> None:
    """Print the figures of the sources, and the limits that the tests of the architecture keep.

    A figure above its limit fails a test. To raise a limit, edit limits.json, and give the reason in the commit.
    """
    table = limits()
    for figure in [*figures_of(Tree.read(ROOT)), start_up()]:
        print(row(figure, table.get(figure.name)))
        places = figure.places if are_places_shown else figure.places[:1] if figure.is_of_one_place else ()
        for place in places:
            print(f"        {place}")


def row(figure: Figure, limit: int | None) -> str:
    """Return the line of a figure."""
    verdict = "" if limit is None else f"  limit {limit:,}" + " EXCEEDED" * (figure.value > limit)
    return f"{figure.value:>7,}  {figure.name:<64}{verdict}".rstrip()


figures()
