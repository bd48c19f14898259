"""The exit codes of our processes: no other file has their numbers."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The ends of a process."""

    #: The command did what it was asked to do.
    DONE = 0
    #: It failed, or a check found a difference. The last line on standard error gives the reason.
    FAILED = 1
    #: Wrong usage, job, model or data, or a refusal by the server. Nothing was begun, and the next try would end alike.
    USAGE = 2
    #: It was interrupted, by Ctrl-C or a signal.
    INTERRUPTED = 130
