"""How a command ends: exit codes from the constants of the command line, errors from their tree."""

from docs.generators.tables import code, comments_of, first_sentence, table
from lockstep.common import errors
from lockstep.common.errors import LockstepError, UsageError
from lockstep.common.runtime.exit_codes import ExitCode


def exit_codes() -> str:
    """Return the exit codes of every command."""
    meanings = comments_of(ExitCode)
    return table(("code", "meaning"), [[code(int(each)), meanings[each.name]] for each in ExitCode])


def error_classes() -> str:
    """Return the errors of the library with what they mean, and the exit code that each becomes."""
    rows = [
        [f"{'&emsp;' * depth}{code(kind.__name__)}", first_sentence(kind.__doc__), code(exit_code(kind))]
        for depth, kind in _tree(LockstepError, 0)
    ]
    return table(("error", "meaning", "exit code"), rows)


def exit_code(kind: type[LockstepError]) -> int:
    """Return the code with which the command line ends after an error."""
    return int(ExitCode.USAGE if issubclass(kind, UsageError) else ExitCode.FAILED)


def _tree(kind: type[LockstepError], depth: int) -> list[tuple[int, type[LockstepError]]]:
    below = [each for each in vars(errors).values() if isinstance(each, type) and kind in each.__bases__]
    return [(depth, kind), *(found for each in below for found in _tree(each, depth + 1))]
