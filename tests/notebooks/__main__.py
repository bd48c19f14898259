"""Runs labs and saves them with their outputs, and makes the versions for a course. See `scripts/notebooks --help`."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from tests.notebooks.exercises import for_instructors, for_students, verdicts
from tests.notebooks.folder import DIGEST, NOTEBOOKS, Notebook, read, sources_digest, write
from tests.notebooks.wrong_answers import mistakes_in


def _run(notebook: Notebook) -> Notebook:
    from tests.notebooks.execution import executed
    from tests.notebooks.pictures import with_small_pictures

    result = with_small_pictures(executed(notebook))
    result["metadata"] = {**notebook["metadata"], DIGEST: sources_digest(notebook)}
    return result


def main(arguments: list[str], run: Callable[[Notebook], Notebook] = _run) -> int:
    """Run and save each notebook; one that fails stays as it was. Return 1 if a check rejects a solution."""
    parser = argparse.ArgumentParser(
        prog="scripts/notebooks",
        description="Run labs whole, each in a clean kernel, and save them with their outputs.",
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="a notebook; by default all of them")
    version = parser.add_mutually_exclusive_group()
    version.add_argument(
        "--instructor",
        action="store_true",
        help="write instructor/NAME.ipynb next to it instead: all answers filled in, run, and typical mistakes listed",
    )
    version.add_argument(
        "--student",
        action="store_true",
        help="write student/NAME.ipynb next to it instead: without the solutions, and not run again",
    )
    chosen = parser.parse_args(arguments)
    # All are made, whatever is wrong with one.
    return max([_make(path, chosen, run) for path in chosen.paths or NOTEBOOKS])


def _make(path: Path, chosen: argparse.Namespace, run: Callable[[Notebook], Notebook]) -> int:
    if chosen.student:
        return _save(path.parent / "student" / path.name, for_students(read(path)))
    print(f"running {path.name}", flush=True)
    if not chosen.instructor:
        return _save(path, run(read(path)))
    result = run(for_instructors(read(path), mistakes_in(path.stem)))
    rejected = [line for _, _, line in verdicts(result) if not line.startswith("✓")]
    for line in rejected:
        print(f"error: {path.name}: the check of a solution reports {line!r}: expected ✓", file=sys.stderr)
    return _save(path.parent / "instructor" / path.name, result) or int(bool(rejected))


def _save(path: Path, notebook: Notebook) -> int:
    path.parent.mkdir(exist_ok=True)
    write(path, notebook)
    print(f"wrote {os.path.relpath(path)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
