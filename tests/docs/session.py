"""Runs the Python blocks of one page in one process, as a notebook does its cells. Started as a program of its own.

Reads the path of a block on each line of standard input, runs it, and writes a line to descriptor 3: empty if it ran to
its end, else the traceback as JSON. A block with `>>>` is a doctest: its outputs have to be as they stand.
"""

import doctest
import json
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any


def main() -> None:
    """Run blocks until there are no more."""
    sys.path[0] = os.getcwd()
    # A module of its own: a page may call something `run`, or `main`, and its classes are looked up in `__main__`.
    sys.modules["__main__"] = ModuleType("__main__")
    namespace = sys.modules["__main__"].__dict__
    with os.fdopen(3, "w", encoding="utf-8") as answers:
        for line in sys.stdin:
            fault = run(Path(line.rstrip("\n")), namespace)
            sys.stdout.flush()
            answers.write(f"{json.dumps(fault) if fault else ''}\n")
            answers.flush()


def run(path: Path, namespace: dict[str, Any]) -> str:
    """Run one block; return what went wrong, empty if nothing did."""
    text = path.read_text(encoding="utf-8")
    try:
        if ">>> " in text:
            return _run_doctest(path, text, namespace)
        exec(compile(text, str(path), "exec"), namespace)  # `linecache` finds the text of its classes in the file
    except (Exception, SystemExit):  # noqa: BLE001  whatever it is, the page has it
        return traceback.format_exc()
    return ""


def _run_doctest(path: Path, text: str, namespace: dict[str, Any]) -> str:
    test = doctest.DocTestParser().get_doctest(text, {}, path.name, str(path), 0)
    test.globs = namespace
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(test, out=said.append, clear_globs=False)
    return "".join(said)


if __name__ == "__main__":
    main()
