"""Runs notebooks and saves them with their outputs: `python -m tests.notebooks [PATH ...]`, by default all of them."""

import sys
from pathlib import Path

from tests.notebooks.execution import executed
from tests.notebooks.folder import DIGEST, NOTEBOOKS, read, sources_digest, write
from tests.notebooks.pictures import with_small_pictures


def main(paths: list[Path]) -> None:
    """Run and save each notebook; one that fails stays as it was."""
    for path in paths:
        print(f"running {path.name}", flush=True)
        notebook = read(path)
        result = with_small_pictures(executed(notebook))
        result["metadata"] = {**notebook["metadata"], DIGEST: sources_digest(notebook)}
        write(path, result)


main([Path(argument) for argument in sys.argv[1:]] or NOTEBOOKS)
