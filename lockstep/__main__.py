"""The entry point of our processes, as `python -m lockstep` or by the script `lockstep`."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

from lockstep.common.runtime.environment import collector_paused
from lockstep.common.runtime.exit_codes import ExitCode


def main() -> None:
    """Run the command line and exit; Ctrl-C ends it in one line, also while its modules are still being loaded."""
    signal.signal(signal.SIGINT, end_at_once)
    try:
        # Here: that takes a third of a second, in which an impatient Ctrl-C comes.
        with collector_paused():
            from lockstep.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("\nerror: interrupted\n")
        sys.exit(ExitCode.INTERRUPTED)
    run()


def end_at_once(number: int, frame: FrameType | None) -> None:
    """End this process, which has begun nothing yet.

    Raised within an import, an interrupt may come up in a callback of the interpreter, which reports and drops it.
    """
    with suppress(OSError):
        os.write(2, b"\nerror: interrupted\n")
    os._exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
