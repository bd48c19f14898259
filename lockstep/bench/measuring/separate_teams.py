"""Teams that are started one by one on this machine, as people start them on several hosts: they stand for hosts."""

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from lockstep.common.runtime.numerics import Numerics
from lockstep.common.transport.port import ClientPort
from lockstep.launch.child import HERE, WatchedProcess
from lockstep.launch.process_backend import LocalBackend, ProcessBackend, ProcessCommand, Role
from lockstep.runs.launch_config import Launch


@dataclass(frozen=True)
class SeparateTeams:
    """This machine, on which each worker of a launch is a command of its own that starts a team."""

    #: Starts the processes.
    local: ProcessBackend
    #: Of each team.
    processes: int
    #: Of all teams: the run begins with all of them.
    workers: int
    has_external_workers: bool = False

    def start(self, command: ProcessCommand, folder: Path, numerics: Numerics) -> WatchedProcess:
        arguments = self._team(command) if command.role is Role.WORKER else self._waiting_for_all(command)
        return self.local.start(replace(command, arguments=arguments), folder, numerics)

    def dial(self, address: str, server: WatchedProcess) -> ClientPort:
        return self.local.dial(address, server)

    def _team(self, command: ProcessCommand) -> list[str]:
        role, address, *_ = command.arguments
        return [role, address, "--workers", str(self.processes), "--supervised", HERE]

    def _waiting_for_all(self, command: ProcessCommand) -> list[str]:
        words = list(command.arguments)
        if "--min-workers" in words:
            words[words.index("--min-workers") + 1] = str(self.workers)
        return words


def teams_backend(launch: Launch, teams: int) -> tuple[Launch, ProcessBackend]:
    """Return how a run is started as so many teams: the launch of its commands, and who starts them."""
    local = LocalBackend(launch)
    if teams == 1:
        return launch, local
    commands = msgspec.structs.replace(launch, workers=teams)
    return commands, SeparateTeams(local, launch.workers // teams, launch.workers)
