"""Every error that Lockstep raises on purpose, in one tree; it does not know where they are raised.

    LockstepError
    ├── UsageError                the request of the user cannot be done; exit code 2
    │   ├── JobError              a value of the job is unknown, mistyped or out of range
    │   ├── ModelError            a model cannot be imported, described or built
    │   ├── DataError             a dataset is missing, damaged or not the one that the job names
    │   ├── FileFormatError       a file of weights is not what its format demands
    │   ├── AddressError          an address is malformed, in use, or not allowed
    │   ├── KeyFileError          a key or a file of keys is missing, malformed, or open to others
    │   ├── NumericsError         the numerics that a job asks for cannot be had in this process or on this machine
    │   └── SharingError          memory cannot be shared between processes: no room, or not the same machine
    ├── RunError                  the run itself failed; exit code 1
    │   ├── DivergedError         a loss or gradient is not finite
    │   ├── ComputeError          a micro-batch raised on a worker, with its traceback
    │   ├── CallbackError         a callback raised
    │   └── UnreachableError      no server answers at the address
    ├── DifferenceError           the records of a run are not what its job computes; exit code 1
    ├── ProtocolError             our side would break the protocol: a bug here
    └── RemoteProtocolError       the peer broke it: bad frames, wrong version, wrong digest

The text of each is one line: a fact in lower case, the offending value, the expected one, the remedy. A text is for
people: what a program decides on is a kind of failure or refusal, in events, messages and exit records, or the stage
of a diagnosis.
"""

import difflib
from collections.abc import Iterable
from enum import Enum, StrEnum
from typing import NamedTuple

#: The share of letters in the same order from which a word may be meant by another one: one of four may be wrong.
NEAR = 0.75


def nearest(word: str, words: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)`, empty if nothing is near."""
    # `AdamW` is nearer to `adamw` than to `adam`.
    spelled = {each.lower(): each for each in words}
    typed = word.lower()
    for found in difflib.get_close_matches(typed, list(spelled), n=1):
        # Of short words that share half of their letters, only those with letters in another order are near.
        if difflib.SequenceMatcher(None, found, typed).ratio() >= NEAR or sorted(found) == sorted(typed):
            return f" (did you mean {spelled[found]!r}?)"
    return ""


class LockstepError(Exception):
    """The root: one `except` catches everything that is raised on purpose."""


class UsageError(LockstepError):
    """The request of the user cannot be done; the text explains what to change."""


class JobError(UsageError):
    """A key or value of the job is unknown, mistyped or out of range."""


class ModelError(UsageError):
    """A model cannot be imported, described or built."""


class DataError(UsageError):
    """A dataset is missing, damaged, or not the one that the job names."""


class FileFormatError(UsageError):
    """A file of weights is damaged or not of the expected format."""


class AddressError(UsageError):
    """An address is malformed, in use, or not allowed without keys."""


class KeyFileError(UsageError):
    """A key, or a file of keys, is missing, malformed, open to other users, or of no use here."""


class NumericsError(UsageError):
    """The numerics that a job asks for cannot be had here: names those that were found."""


class SharingError(UsageError):
    """Memory cannot be shared between processes: there is no room for it, or not both see the same."""


class RunError(LockstepError):
    """The run was started properly and failed."""


class DivergedError(RunError):
    """A loss or gradient is not finite: names the step, the micro-batch and the layer."""


class ComputeError(RunError):
    """A micro-batch raised an exception on a worker: carries its traceback."""


class CallbackError(RunError):
    """A user's callback raised; that is the cause of this."""


class UnreachableError(RunError):
    """No server answers at the address within the time allowed."""


class DifferenceError(LockstepError):
    """The records of a run are not what its job computes: names the first difference."""


class ProtocolError(LockstepError):
    """Our side was about to break the protocol: a bug in Lockstep."""


class RemoteProtocolError(LockstepError):
    """The peer broke the protocol; whatever it sent was not applied."""


class RefusalKind(StrEnum):
    """Why a server refuses a process that wants to join its run."""

    #: Another version of Lockstep, of its protocol, or of what its numerics follow from.
    VERSION = "version"
    #: The same versions, and other arithmetic.
    NUMERICS = "numerics"
    #: It asks for a run that is not this one.
    OTHER_RUN = "other_run"
    #: Its incarnation is there already.
    DUPLICATE = "duplicate"
    #: It does not share the server's memory, which this run needs.
    MEMORY = "memory"
    #: No more processes of its sort are needed.
    FULL = "full"
    #: It was evicted since it computed wrongly, and may not come back.
    CONVICTED = "convicted"
    #: It broke the protocol, or can no longer be served.
    FAILED = "failed"


class FailureKind(StrEnum):
    """Why a run, or one process of it, did not succeed."""

    #: A loss, a gradient or the weights are not finite.
    DIVERGED = "diverged"
    #: The audit found that workers computed different bits.
    AUDIT = "audit"
    #: The audit found a wrong worker: the run is resumed without it, from a checkpoint before its results.
    ROLLBACK = "rollback"
    #: A micro-batch raised an exception, on two workers.
    COMPUTE = "compute"
    INTERRUPTED = "interrupted"
    #: The system stopped the server, as before a machine is shut down: it may be started again.
    STOPPED = "stopped"
    #: A server of the run is gone; the run may be resumed from its last checkpoint.
    SERVER_LOST = "server_lost"
    #: No server answers at the address, or it has gone silent.
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    #: The model, the data or the memory for the run cannot be had.
    PREPARATION = "preparation"
    #: The peer broke the protocol.
    PROTOCOL = "protocol"


#: The ends of a part of a run that a process resumes from a checkpoint without being told to.
RESUMED_HERE = frozenset({FailureKind.SERVER_LOST, FailureKind.ROLLBACK})

#: The ends after which workers and shards wait for the run to be resumed.
CONTINUED = RESUMED_HERE | {FailureKind.STOPPED}


class Stage(Enum):
    """The stages of a connection, in this order."""

    NAME = "name"
    ROUTE = "route"
    FIREWALL = "firewall"
    PORT = "port"
    SERVICE = "service"
    KEY = "key"
    VERSION = "version"


class Diagnosis(NamedTuple):
    """The obstacle of a connection.

    Not a record of msgspec, since errors are imported where the kernels are compiled: by a build, which lacks packages.
    """

    text: str
    stage: Stage
    #: Whether waiting longer is of no use.
    is_final: bool = False
