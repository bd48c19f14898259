"""Names of earlier versions that are gone, and what to do instead: no other file of the package has them.

A command line or a job that uses one gets one line with this, and exit code 2. Values that a run's folder has in its
job file are ignored if they are those that change nothing, because earlier versions wrote out every value.
"""

from typing import Any, NamedTuple

from lockstep.common.errors import JobError
from lockstep.common.files.sanitize import one_line

_STARTED_AGAIN = (
    "start the server again with the same command, as systemd or Kubernetes do by themselves, and it resumes from its "
    "last checkpoint"
)
_SIGNED_BY_OTHERS = "sign the run's receipt.json, which is an in-toto statement, with cosign or another tool"
_FIXED_SERVERS = "the number of servers is fixed in a run, by --servers"

#: Commands; a part of a command by both words, as `keys make`.
COMMANDS: dict[str, str] = {
    "check-data": "`lockstep verify FOLDER` checks a dataset",
    "completion": 'a shell completes with `eval "$(_LOCKSTEP_COMPLETE=bash_source lockstep)"`, or zsh_source',
    "share": "`lockstep export RUN FILE.zip` writes a run to one file",
    "promote": _STARTED_AGAIN,
    "drain": f"stop the server, and {_STARTED_AGAIN}",
    "simulate": "it is a tool for developers: run scripts/simulate in a clone",
}

#: Options of any command, or of one that is named before it, without those of a job's values.
OPTIONS: dict[str, str] = {
    "--best": "--checkpoint best",
    "--signed": _SIGNED_BY_OTHERS,
    "verify --keys": _SIGNED_BY_OTHERS,
    "--standby-of": _STARTED_AGAIN,
    "server --key": "a server has a folder of keys: give --keys DIR",
    "worker --shard-keys": "start shards on other machines by `lockstep shard ADDRESS --keys DIR`",
    "--standbys": _STARTED_AGAIN,
    "doctor --machine": "`lockstep doctor --report` prints versions and numerics",
    "find-lr --lowest": "give find_lr(lowest=...) in Python",
    "find-lr --highest": "give find_lr(highest=...) in Python",
}


class RemovedValue(NamedTuple):
    """A value of a job, or an option of its run, that is gone."""

    instead: str
    #: The values with which the run was what it is without: by default, all.
    ignored: tuple[Any, ...] = ()


#: Values of a job, with an underscore; their flags are options that are gone too.
VALUES: dict[str, RemovedValue] = {
    "spread": RemovedValue(_FIXED_SERVERS, ("never",)),
    "standby": RemovedValue(_STARTED_AGAIN, (False,)),
    "takeover_seconds": RemovedValue("workers wait for the server as long as their --timeout says"),
}


def removed_command(name: str) -> str:
    """Return the line on a command that is gone, empty for another name."""
    return _line(f"the command {name!r}", COMMANDS.get(name))


def removed_option(flag: str, command: str = "") -> str:
    """Return the line on an option of a command that is gone, empty for another one."""
    value = VALUES.get(flag.removeprefix("--").removeprefix("no-").replace("-", "_"))
    return _line(
        f"the option {flag!r}", OPTIONS.get(flag) or OPTIONS.get(f"{command} {flag}") or (value and value.instead)
    )


def is_ignored(name: str, value: object) -> bool:
    """Tell whether a value of a job is gone and changed nothing; `JobError` if it is gone and did change something."""
    if (gone := VALUES.get(name)) is None:
        return False
    if gone.ignored and value not in gone.ignored:
        raise JobError(f"{name} = {one_line(repr(value))}: {_line('the value', gone.instead)}")
    return True


def _line(what: str, instead: str | None) -> str:
    return f"{what} is gone: {instead}" if instead else ""
