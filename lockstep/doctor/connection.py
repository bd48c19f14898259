"""What is between this machine and a server, looked at in the order in which a worker's connection meets it."""

import os
import platform
import secrets
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import msgspec

from common.errors import LockstepError, RemoteProtocolError
from common.protocol.codec import decode, encode
from common.protocol.messages import (
    PROTOCOL_VERSION,
    Finished,
    Join,
    Leave,
    Message,
    Refused,
    ServerMessage,
    Status,
    Welcome,
)
from common.protocol.numerics import Fingerprint, fingerprint
from common.runtime.clock import Clock, SystemClock
from common.transport.address import TcpAddress, parse
from common.transport.auth.credentials import ClientKeys, Credential
from common.transport.diagnosis import Diagnosis, Stage
from common.transport.zeromq.client import ZeroMqClient
from common.transport.zeromq.ports import dial
from lockstep.doctor.finding import Finding
from lockstep.doctor.report import findings_lines
from lockstep.launch.remote.attendant import address_towards
from ps.coordinator.registration import refused_for

#: Seconds for an answer in all, and between two looks at what is in the way.
PATIENCE_S, LOOK_S = 6.0, 1.0

#: What an answer tells, of this machine or the other, that comes out no other way a second later.
TOLD_AT_ONCE = (Stage.NAME, Stage.ROUTE, Stage.PORT)

#: Stage -> cause, and what to do.
CURES = {
    Stage.NAME: (
        "the name is misspelt, or this machine asks another name service than the one that knows it",
        "correct it, or write the address in digits: `lockstep server` shows where it listens",
    ),
    Stage.ROUTE: (
        "no network of this machine leads there, or it is down",
        "check the address and the cable (ip route get ADDRESS); both machines need a common network",
    ),
    Stage.FIREWALL: (
        "packets are dropped without a word: by a firewall, or the host is off",
        "allow TCP to that port at the server, inbound; workers need none; one port is enough",
    ),
    Stage.PORT: (
        "the host answers that nobody listens there: the server is not up yet, has ended, or has another port",
        "start it, compare the port, and see that --bind is not 127.0.0.1 there",
    ),
    Stage.SERVICE: ("another program listens there", "compare the port with the one that the server shows"),
    Stage.KEY: (
        "the server lets in those whose keys it knows, and workers speak with no other server than their key's",
        "give --key FILE with the worker's file of that server; `lockstep keys list DIR` there tells whom it lets in",
    ),
    Stage.VERSION: (
        "the server runs another version of lockstep, or of NumPy",
        "install the same versions on both machines",
    ),
}

NUMERICS = (
    "another processor, or another BLAS, gives other bits",
    "use machines of one kind, or start the server with --allow-mixed-numerics and lose the promise",
)


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """A way to a server that was examined."""

    address: str
    #: What was found on the way, as heading and text, up to where it ends.
    steps: list[tuple[str, str]]
    findings: list[Finding]

    def lines(self) -> list[str]:
        """Return it for a person."""
        return [*(f"{heading:<10} {text}" for heading, text in self.steps), *findings_lines(self.findings)]


@dataclass
class Examiner:
    """Asks for a place as a worker does, and gives it back at once."""

    address: str
    credential: Credential
    shown: Fingerprint = field(default_factory=fingerprint)
    clock: Clock = field(default_factory=SystemClock)

    def examine(self) -> Connection:
        """Go as far as one comes. AddressError where the address is malformed. Ten seconds at most, unless the name
        service takes longer."""
        steps = list(self._way())
        with closing(dial(self.address, credential=self.credential)) as port:
            answer = self._ask(port)
            if isinstance(answer, Diagnosis):
                return self._connection(steps, _finding(answer.stage, answer.text))
            steps.append(("port", "a server of lockstep listens"))
            if isinstance(self.credential, ClientKeys):
                steps.append(("key", "the server is the key's, and lets it in"))
            return self._judged(steps, answer)

    def _way(self) -> Iterator[tuple[str, str]]:
        parsed = parse(self.address)
        yield "address", self.address
        if not isinstance(parsed, TcpAddress):
            return
        try:
            found = socket.getaddrinfo(parsed.host, parsed.port, type=socket.SOCK_STREAM)
            yield "name", ", ".join(dict.fromkeys(str(entry[4][0]) for entry in found))
            yield "route", f"from {address_towards(parsed.host)}"
        except (OSError, LockstepError):
            # What of it is in the way is found by trying to connect.
            return

    def _ask(self, port: ZeroMqClient) -> Message | Diagnosis:
        """Return what the server says to a worker that joins, or why it says nothing."""
        join = Join(
            protocol=PROTOCOL_VERSION,
            incarnation=secrets.token_hex(8),
            host=platform.node() or "unknown",
            pid=os.getpid(),
            fingerprint=self.shown,
        )
        port.send(encode(join))
        deadline, trouble = self.clock.now() + PATIENCE_S, None
        while self.clock.now() < deadline and not _is_certain(trouble):
            frames = port.receive(min(LOOK_S, max(0.0, deadline - self.clock.now())))
            if frames is None:
                trouble = port.trouble()
                continue
            try:
                message, _ = decode(frames, ServerMessage)
            except RemoteProtocolError as error:
                return Diagnosis(f"the server answers what cannot be understood: {error}", Stage.VERSION)
            if isinstance(message, Welcome):
                port.send(encode(Leave(reason="it only looked (lockstep doctor --connect)")))
                port.close(1.0)
            return message
        return trouble or Diagnosis(
            f"the server at {self.address} does not answer within {PATIENCE_S:g} s: it is stopped, or busy",
            Stage.SERVICE,
        )

    def _judged(self, steps: list[tuple[str, str]], answer: Message) -> Connection:
        kind = refused_for(answer.reason) if isinstance(answer, Refused) else ""
        if isinstance(answer, Refused) and kind == "version":
            return self._connection(steps, _finding(Stage.VERSION, f"the server refuses: {answer.reason}"))
        steps.append(("version", f"lockstep {self.shown.lockstep} (code {self.shown.code}), as at the server"))
        if isinstance(answer, Refused):
            cause, change = NUMERICS if kind == "numerics" else ("it says why", "do what it says")
            finding = Finding(
                kind=kind or "refused",
                what="the server would refuse a worker of this machine",
                evidence=answer.reason,
                cause=cause,
                change=change,
            )
            return self._connection(steps, finding)
        steps.append(("numerics", f"{self.shown.canary}, as at the server"))
        match answer:
            case Welcome():
                steps.append(("run", f"{answer.run}: a worker started here would be let in as worker {answer.rank}"))
            case Finished():
                steps.append(("run", f"is over{answer.reason and ': '}{answer.reason}"))
            case Status():
                steps.append(("run", f"{answer.run}, {answer.phase}"))
        return self._connection(steps)

    def _connection(self, steps: list[tuple[str, str]], *findings: Finding) -> Connection:
        return Connection(address=self.address, steps=steps, findings=list(findings))


def _is_certain(trouble: Diagnosis | None) -> bool:
    return trouble is not None and (trouble.is_final or trouble.stage in TOLD_AT_ONCE)


def _finding(stage: Stage, text: str) -> Finding:
    cause, change = CURES[stage]
    return Finding(
        kind=stage.value,
        what=f"a worker here comes no further than the {stage.value}",
        evidence=text,
        cause=cause,
        change=change,
    )
