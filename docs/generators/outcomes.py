"""How a command ends: exit codes from the constants of the command line, errors from their tree."""

from docs.generators.tables import code, first_sentence, table
from lockstep.cli.main import FAILED
from lockstep.common import errors
from lockstep.common.errors import LockstepError, UsageError
from lockstep.launch.supervision.restarts import INTERRUPTED, USAGE

#: What each code means.
MEANINGS = {
    0: "The command did what it was asked to do.",
    FAILED: "It failed, or a check found a difference. The last line on standard error gives the reason.",
    USAGE: "Wrong usage, job, model or data. Nothing was begun.",
    INTERRUPTED: "It was interrupted, by Ctrl-C or a signal.",
}


def exit_codes() -> str:
    """Return the exit codes of every command."""
    return table(("code", "meaning"), [[code(number), text] for number, text in sorted(MEANINGS.items())])


def error_classes() -> str:
    """Return the errors of the library with what they mean, and the exit code that each becomes."""
    rows = [
        [f"{'&emsp;' * depth}{code(kind.__name__)}", first_sentence(kind.__doc__), code(exit_code(kind))]
        for depth, kind in _tree(LockstepError, 0)
    ]
    return table(("error", "meaning", "exit code"), rows)


def exit_code(kind: type[LockstepError]) -> int:
    """Return the code with which the command line ends after an error."""
    return USAGE if issubclass(kind, UsageError) else FAILED


def _tree(kind: type[LockstepError], depth: int) -> list[tuple[int, type[LockstepError]]]:
    below = [each for each in vars(errors).values() if isinstance(each, type) and kind in each.__bases__]
    return [(depth, kind), *(found for each in below for found in _tree(each, depth + 1))]
