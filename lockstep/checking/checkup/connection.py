"""Examine the way from this machine to a server, in the order in which a worker's connection meets its obstacles.

If there are none, measure it, and say what it means for the run.
"""

import os
import platform
import secrets
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import msgspec
import numpy as np

from lockstep.checking.checkup.finding import Finding, findings_lines, found
from lockstep.checking.checkup.link import LinkAdvice, LinkMeter, advice_of, most_local_steps, seconds_per_sample
from lockstep.common.aggregation.tree import Node
from lockstep.common.data.source import load
from lockstep.common.errors import LockstepError, RefusalKind, RemoteProtocolError
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.fingerprint import Fingerprint, fingerprint
from lockstep.common.protocol.messages import (
    PROTOCOL_VERSION,
    Echo,
    Eviction,
    Finished,
    Join,
    Leave,
    Message,
    Refused,
    ServerMessage,
    Status,
    StatusRequest,
    Welcome,
)
from lockstep.common.runtime.clock import Clock, SystemClock
from lockstep.common.transport.address import TcpAddress, parse
from lockstep.common.transport.auth.credentials import ClientKeys, Credential
from lockstep.common.transport.diagnosis import Diagnosis, Stage
from lockstep.common.transport.zeromq.client import ZeroMqClient
from lockstep.common.transport.zeromq.ports import dial
from lockstep.launch.endpoints import address_towards
from lockstep.worker.gradient_sink import NotFiniteError
from lockstep.worker.setup import gather

#: Seconds to wait for an answer in all, and between two looks at the cause of the delay.
TIMEOUT_S, INTERVAL_S = 6.0, 1.0

#: Seconds that measuring the link may take, and that one answer may; a run that does not answer is not waited for.
MEASURING_S, ECHO_S = 5.0, 4.0

#: How often a micro-batch is computed here to see how long that takes; the quickest counts.
TRIES = 3

#: Obstacles that are certain at once: waiting longer would not change the diagnosis.
CERTAIN_AT_ONCE = (Stage.NAME, Stage.ROUTE, Stage.PORT)


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """The result of examining the way to a server."""

    address: str
    #: What was found on the way, as (heading, text), up to the first obstacle.
    steps: list[tuple[str, str]]
    findings: list[Finding]
    #: What the link is like; None if nobody could measure it.
    link: LinkAdvice | None = None

    def lines(self) -> list[str]:
        lines = [f"{heading:<10} {text}" for heading, text in self.steps]
        return [*lines, *([] if self.link is None else self.link.lines()), *findings_lines(self.findings)]


@dataclass
class Examiner:
    """Joins as a worker does, and leaves at once."""

    address: str
    credential: Credential
    shown: Fingerprint = field(default_factory=fingerprint)
    clock: Clock = field(default_factory=SystemClock)
    #: What was found of the link, once it was measured.
    _link: LinkAdvice | None = None

    def examine(self) -> Connection:
        """Go as far as possible, for at most ten seconds unless the name service takes longer; then measure the link.

        Raises AddressError if the address is malformed.
        """
        steps = list(self._way())
        answer = self._asked()
        if isinstance(answer, Diagnosis):
            return self._connection(steps, found(answer.stage.value, text=answer.text))
        steps.append(("port", "a Lockstep server listens there"))
        if isinstance(self.credential, ClientKeys):
            steps.append(("key", "the server is the one of the key, and admits it"))
        return self._verdict(steps, answer)

    def _asked(self) -> Message | Diagnosis:
        with closing(dial(self.address, credential=self.credential)) as port:
            return self._ask(port)

    def _way(self) -> Iterator[tuple[str, str]]:
        parsed = parse(self.address)
        yield "address", self.address
        if not isinstance(parsed, TcpAddress):
            return
        try:
            entries = socket.getaddrinfo(parsed.host, parsed.port, type=socket.SOCK_STREAM)
            yield "name", ", ".join(dict.fromkeys(str(entry[4][0]) for entry in entries))
            yield "route", f"from {address_towards(parsed.host)}"
        except (OSError, LockstepError):
            # The obstacle is found by trying to connect.
            return

    def _ask(self, port: ZeroMqClient) -> Message | Diagnosis:
        """Return the answer of the server to a joining worker, or why there is none."""
        join = Join(
            protocol=PROTOCOL_VERSION,
            incarnation=secrets.token_hex(8),
            host=platform.node() or "unknown",
            pid=os.getpid(),
            fingerprint=self.shown,
        )
        port.send(encode(join))
        deadline, diagnosis = self.clock.now() + TIMEOUT_S, None
        while self.clock.now() < deadline:
            frames = port.receive(min(INTERVAL_S, max(0.0, deadline - self.clock.now())))
            if frames is None:
                diagnosis = port.diagnosis()
                if diagnosis is not None and (diagnosis.is_final or diagnosis.stage in CERTAIN_AT_ONCE):
                    break
                continue
            try:
                message, _ = decode(frames, ServerMessage)
            except RemoteProtocolError as error:
                return Diagnosis(f"the answer of the server cannot be decoded: {error}", Stage.VERSION)
            if isinstance(message, Welcome):
                self._link = self._measured(port, message)
                port.send(encode(Leave(reason="it only tested the connection (lockstep doctor --connect)")))
                port.close(1.0)
            return message
        return diagnosis or Diagnosis(
            f"the server at {self.address} does not answer within {TIMEOUT_S:g} s: it is stopped, or busy",
            Stage.SERVICE,
        )

    def _measured(self, port: ZeroMqClient, welcome: Welcome) -> LinkAdvice | None:
        """Send arrays there and back; return what that means for the run, None if the server does not answer."""
        meter, end = LinkMeter(), self.clock.now() + MEASURING_S
        while (values := meter.next()) is not None and self.clock.now() < end:
            began = self.clock.now()
            port.send(encode(Echo(number=0), [np.zeros(values, np.float32)]))
            if self._answer(port, Echo) is None:
                break
            meter.record(self.clock.now() - began)
        speed = meter.speed()
        if speed is None:
            return None
        port.send(encode(StatusRequest()))
        status = self._answer(port, Status)
        if not isinstance(status, Status):
            return advice_of(welcome.job, welcome.size, speed, self._sample_s(welcome))
        sample_s = seconds_per_sample(status) or self._sample_s(welcome)
        return advice_of(welcome.job, welcome.size, speed, sample_s, most_local_steps(welcome.job, status))

    def _answer(self, port: ZeroMqClient, kind: type[Message]) -> Message | None:
        """Return the answer of that kind, None if none comes in time or the server is done with us."""
        deadline = self.clock.now() + ECHO_S
        while (left := deadline - self.clock.now()) > 0.0:
            frames = port.receive(left)
            if frames is None:
                continue
            try:
                message, _ = decode(frames, ServerMessage | Echo)
            except RemoteProtocolError:
                return None
            if isinstance(message, kind):
                return message
            if isinstance(message, Finished | Eviction):
                return None
        return None

    def _sample_s(self, welcome: Welcome) -> float | None:
        """Return the seconds that this machine takes for a sample; None if its model or its data is not here.

        A model that is somebody's own code is not run for this.
        """
        if welcome.source:
            return None
        try:
            material = gather(welcome, load)
            weights = material.model.first_weights(welcome.job.seed)
            compute = material.compute((weights, weights.copy()), ())
            times, samples = list[float](), max(1, welcome.job.global_batch // welcome.job.micro_batches)
            for _ in range(TRIES):
                began = self.clock.now()
                compute.train(0, Node(0, 1))
                times.append(self.clock.now() - began)
        except (LockstepError, NotFiniteError):
            return None
        return min(times) / samples

    def _verdict(self, steps: list[tuple[str, str]], answer: Message) -> Connection:
        if isinstance(answer, Refused) and answer.kind is RefusalKind.VERSION:
            return self._connection(steps, found("version", text=f"the server refuses: {answer.reason}"))
        steps.append(("version", f"lockstep {self.shown.lockstep} (code {self.shown.code}), as at the server"))
        if isinstance(answer, Refused):
            name = "other-numerics" if answer.kind is RefusalKind.NUMERICS else "refused"
            return self._connection(steps, found(name, reason=answer.reason))
        steps.append(("numerics", "as at the server"))
        match answer:
            case Welcome():
                steps.append(("run", f"{answer.run}: a worker started here would be admitted as worker {answer.rank}"))
            case Finished():
                steps.append(("run", f"is over{answer.reason and ': '}{answer.reason}"))
            case Status():
                steps.append(("run", f"{answer.run}, {answer.phase}"))
        return self._connection(steps)

    def _connection(self, steps: list[tuple[str, str]], *findings: Finding) -> Connection:
        return Connection(address=self.address, steps=steps, findings=list(findings), link=self._link)
