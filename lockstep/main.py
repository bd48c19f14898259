"""Where the command `lockstep` begins: errors become one line and an exit code."""

import sys

import click

from common.errors import LockstepError, UsageError
from lockstep.child import ERROR_MARK
from lockstep.commands.root import cli
from lockstep.signals import treat_termination_as_interrupt

#: Exit codes: wrong usage or job, a run that failed, an interrupt (128 + SIGINT, as shells have it).
USAGE, FAILED, INTERRUPTED = 2, 1, 130


def main() -> None:
    """Run the command line and exit."""
    treat_termination_as_interrupt()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; return its exit code."""
    try:
        code = cli.main(arguments, prog_name="lockstep", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"{ERROR_MARK}interrupted", err=True)
        return INTERRUPTED
    except LockstepError as error:
        click.echo(f"{ERROR_MARK}{error}", err=True)
        return USAGE if isinstance(error, UsageError) else FAILED
    return code if isinstance(code, int) else 0
