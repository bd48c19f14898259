"""Teams that are started one by one: what a launch's commands become."""

from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import Mock

from lockstep.bench.measuring.separate_teams import SeparateTeams, teams_backend
from lockstep.common.runtime.numerics import Numerics
from lockstep.common.transport.port import ClientPort
from lockstep.launch.child import HERE, WatchedProcess
from lockstep.launch.process_backend import LocalBackend, ProcessCommand, Role
from lockstep.runs.launch_config import Launch


@dataclass
class Started:
    """Notes commands instead of starting them."""

    has_external_workers: bool = False
    commands: list[ProcessCommand] = field(default_factory=list)

    def start(self, command: ProcessCommand, folder: Path, numerics: Numerics) -> WatchedProcess:
        self.commands.append(command)
        return Mock(WatchedProcess)

    def dial(self, address: str, server: WatchedProcess) -> ClientPort:
        raise NotImplementedError


def started(role: Role, *arguments: str) -> ProcessCommand:
    """Return the command that is started for one with these arguments, of three teams of four."""
    local = Started()
    command = ProcessCommand(role=role, arguments=[role.value, *arguments], number=2)
    SeparateTeams(local, processes=4, workers=12).start(command, Path(), "native")
    return local.commands[0]


def test_a_worker_is_a_command_that_starts_a_team() -> None:
    command = started(Role.WORKER, "ipc://x", "--workers", "3", "--process", "2", "--team", "y", "--supervised", HERE)
    assert command.arguments == ["worker", "ipc://x", "--workers", "4", "--supervised", HERE]
    assert (command.role, command.number) == (Role.WORKER, 2)


def test_the_server_waits_for_the_processes_of_all_teams() -> None:
    command = started(Role.SERVER, "--min-workers", "3", "--run-dir", "z")
    assert command.arguments == ["server", "--min-workers", "12", "--run-dir", "z"]
    assert started(Role.SHARD, "ipc://x").arguments == ["shard", "ipc://x"]


def test_one_team_is_started_as_train_does() -> None:
    launch = Launch(workers=8)
    commands, backend = teams_backend(launch, 1)
    assert commands is launch
    assert isinstance(backend, LocalBackend)


def test_several_teams_are_as_many_commands() -> None:
    commands, backend = teams_backend(Launch(workers=8, transport="tcp"), 2)
    assert commands == Launch(workers=2, transport="tcp")
    assert isinstance(backend, SeparateTeams)
    assert (backend.processes, backend.workers, backend.has_external_workers) == (4, 8, False)
