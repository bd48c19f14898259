"""`scripts/mutate MODULE...`: change modules in small ways, one at a time, and show what no test notices."""

import sys
from collections import Counter

import click

from tests.mutation.workspace import (
    FOLDER,
    SURVIVED,
    difference,
    mirrored_tests,
    module_paths,
    mutmut,
    prepare,
    results,
    tests_by_function,
)

#: Most names of tests that are shown for one change.
NAMED = 5


@click.command()
@click.argument("modules", nargs=-1, required=True)
@click.option("--tests", multiple=True, metavar="PATH", help="tests to run  [those that mirror the modules' folders]")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="processes at a time  [one per core]")
def mutate(modules: tuple[str, ...], tests: tuple[str, ...], jobs: int | None) -> None:
    """Change MODULES, paths of modules or of folders, in small ways; show the changes that no test notices.

    Exit codes: 0 every change was noticed, 1 some were not, 2 the tests could not be run.
    """
    try:
        paths = module_paths(list(modules))
    except ValueError as error:
        sys.exit(f"error: {error}")
    chosen = list(tests) or sorted({mirrored_tests(path).as_posix() for path in paths})
    prepare(paths, chosen)
    # Its progress is for a terminal: elsewhere it is thousands of lines.
    ran = mutmut("run", *(["--max-children", str(jobs)] if jobs else []), is_shown=sys.stdout.isatty())
    if ran.returncode != 0:
        click.echo(ran.stdout or "", err=True)
        click.echo("error: mutmut could not run the tests, see above: do they pass without any change?", err=True)
        sys.exit(2)
    found = results()
    counts = Counter(mutant.status for mutant in found)
    survivors = [mutant for mutant in found if mutant.status in SURVIVED]
    by_function = tests_by_function()
    for mutant in survivors:
        tests_run = by_function.get(mutant.function, [])
        click.echo(f"\n{mutant.name}: {mutant.status}, {len(tests_run)} tests ran")
        for line in difference(mutant):
            click.echo(f"    {line}")
        for name in sorted(tests_run)[:NAMED]:
            click.echo(f"    ran {name}")
    told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    click.echo(f"\n{len(found)} changes: {told}; tests: {' '.join(chosen)}; more: cd {FOLDER} and mutmut browse")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    mutate()
