"""Where a process of ours begins, as `python -m lockstep` or by the script `lockstep`."""

import sys

from lockstep.common.runtime.environment import collector_paused


def main() -> None:
    """Run the command line and exit; Ctrl-C ends it in one line, also while its modules are still being loaded."""
    try:
        # Here: that takes a third of a second, in which an impatient Ctrl-C comes.
        with collector_paused():
            from lockstep.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("\nerror: interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
