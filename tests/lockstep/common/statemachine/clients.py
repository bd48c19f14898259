"""A client of a server to be driven by hand, with the time given."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from lockstep.common.job.job import Job
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import PROTOCOL_VERSION, Join, Message, Ready, Welcome
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.shard_messages import ShardWelcome
from lockstep.common.statemachine.client import (
    Client,
    ClientConfig,
    ClientEvent,
    ClientPhase,
    Exit,
    SendToServer,
)
from lockstep.common.statemachine.machine import Interrupted, Report, Started, TimePassed

DIGEST = "0123456789abcdef" * 4
JOIN = Join(protocol=PROTOCOL_VERSION, incarnation="a", host="h", pid=1, fingerprint=fingerprint())
WELCOME = Welcome(rank=2, run="blue", job=Job(), layout=DIGEST, dataset=DIGEST, source="")
SHARD_WELCOME = ShardWelcome(
    index=1,
    run="blue",
    job=Job(),
    options=RunOptions(servers=2),
    training_samples=64,
    size=8192,
    parameter_size=8192,
)
PREPARED = Ready(rank=WELCOME.rank, part=WELCOME.part)


def config_of(timeout_s: float | None = None, incarnation: str = JOIN.incarnation) -> ClientConfig:
    join = msgspec.structs.replace(JOIN, incarnation=incarnation)
    return ClientConfig(address="tcp://h:1", join=join, timeout_s=timeout_s)


@dataclass
class ClientDrive:
    """A client, and the time."""

    timeout_s: float | None = None
    incarnation: str = JOIN.incarnation
    now: float = 100.0
    client: Client = field(init=False)

    def __post_init__(self) -> None:
        config = config_of(self.timeout_s, self.incarnation)
        self.client = Client(config, role="worker")

    def dispatch(self, event: ClientEvent) -> list[object]:
        return [*self.client.handle(event, self.now)]

    def start(self) -> list[object]:
        return self.dispatch(Started())

    def enter(self) -> list[object]:
        """Start, be welcomed, and be prepared."""
        return self.start() + self.dispatch(WELCOME) + self.dispatch(PREPARED)

    def pass_time(self, seconds: float) -> list[object]:
        """Let time pass, waking the client at each of its deadlines."""
        end, effects = self.now + seconds, list[object]()
        while (due := self.client.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            effects += self.dispatch(TimePassed())
        self.now = end
        return effects


def client_in(phase: ClientPhase) -> ClientDrive:
    """Return a client that has come to a phase by the usual way."""
    drive = ClientDrive()
    drive.start()
    if phase is not ClientPhase.JOINING:
        drive.dispatch(WELCOME)
    if phase in (ClientPhase.JOINED, ClientPhase.ENDED):
        drive.dispatch(PREPARED)
    if phase is ClientPhase.ENDED:
        drive.dispatch(Interrupted())
    assert drive.client.phase is phase
    return drive


def sent(effects: Iterable[object]) -> list[Message]:
    """Return the messages that carry no array."""
    return [effect.message for effect in effects if isinstance(effect, SendToServer)]


def reports(effects: Iterable[object]) -> list[str]:
    return [effect.text for effect in effects if isinstance(effect, Report)]


def exits(effects: Iterable[object]) -> list[Exit]:
    return [effect for effect in effects if isinstance(effect, Exit)]
