"""Examine the way from this machine to a server, in the order in which a worker's connection meets its obstacles.

If there are no obstacles, measure it, and report the consequence for the run.
"""

import os
import platform
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from statistics import median

import msgspec
import numpy as np
from msgspec.structs import replace

from lockstep.checking.checkup.target import Finding, findings_lines, found
from lockstep.common.aggregation.tree import Node
from lockstep.common.data.source import load
from lockstep.common.errors import Diagnosis, LockstepError, RefusalKind, RemoteProtocolError, Stage
from lockstep.common.job.job import Job
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.fingerprint import Fingerprint, fingerprint
from lockstep.common.protocol.messages import (
    ECHO_LIMIT,
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
from lockstep.common.transport.zeromq.client import ZeroMqClient
from lockstep.launch.client import HANDSHAKE_S
from lockstep.launch.endpoints import address_towards, dial_with, keyed
from lockstep.runs.cost_model import (
    BYTES_PER_PARAMETER,
    HANDLING,
    UPDATE_S,
    CostModel,
    Machines,
    bytes_per_parameter,
)
from lockstep.worker.gradient_sink import NotFiniteError
from lockstep.worker.setup import gather

#: Values of the first echoes, whose time is that of the way alone, and how many there are.
SHORT, SHORT_TIMES = 1, 3

#: Values of the first echo that counts. Each is twice as long until one takes so many seconds; then it is repeated.
FIRST, ENOUGH_S, TIMES = 2**12, 0.2, 3

#: Numbers of local steps to consider, and whether vectors are rounded: what changes a job least comes first.
WAYS = ((1, False), (1, True), (4, False), (16, False), (64, False), (64, True), (256, True))

#: Exchanges that a run needs at least for its outer optimizer: `bench local-steps` has figures for so few.
FEWEST_EXCHANGES = 8

#: How vectors are rounded then.
ROUNDED = ("int8", "bfloat16")

#: Most hosts to consider, whatever the number of micro-batches.
MOST_HOSTS = 64

#: One more host helps as long as it is not that close to the best speed without it.
CLOSE = 0.95

#: Enough: a link that is used for at most this share of a step, and so many times the speed of one process at
#: the server.
LINK_SHARE, FASTER = 0.5, 1.5


class LinkSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements of a link, which other programs may have used at the same time."""

    #: In each direction.
    bytes_per_s: float
    round_trip_s: float

    def text(self) -> str:
        mbit = float(f"{self.bytes_per_s * 8 / 1e6:.3g}")
        return f"{mbit:,.10g} Mbit/s each way, {self.round_trip_s * 1e3:.3g} ms there and back"


@dataclass
class LinkMeter:
    """Decides how many values go there and back next."""

    _short_s: list[float] = field(default_factory=list)
    _long_s: list[float] = field(default_factory=list)
    _values: int = FIRST

    def next(self) -> int | None:
        """Return how many values to send next; None at the end."""
        if len(self._short_s) < SHORT_TIMES:
            return SHORT
        return self._values if len(self._long_s) < TIMES else None

    def record(self, seconds: float) -> None:
        """Record how long they took."""
        if len(self._short_s) < SHORT_TIMES:
            self._short_s.append(seconds)
        elif not self._long_s and seconds < ENOUGH_S and self._values < ECHO_LIMIT:
            self._values *= 2
        else:
            self._long_s.append(seconds)

    def speed(self) -> LinkSpeed | None:
        """Return the measurements; None without any."""
        if not self._long_s:
            return None
        round_trip_s = min(self._short_s)
        # All of it has to be there before it is sent back.
        moving_s = max(median(self._long_s) - round_trip_s, 1e-9)
        return LinkSpeed(bytes_per_s=2 * 4 * self._values / moving_s, round_trip_s=round_trip_s)


class LinkOption(msgspec.Struct, frozen=True, kw_only=True):
    """A way to run the job over the link, and what it would bring."""

    name: str
    #: The flags that change the job to it; empty for the job as it is.
    flags: str
    #: The fewest hosts with which it is nearly as fast as it can be.
    hosts: int
    images_per_s: float
    #: Images/s over those of one process at the server, which needs no link.
    speedup: float
    #: The share of a step for which the link is in use.
    link_share: float
    is_recommended: bool = False


class LinkAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """A link, and the ways to run a job over it."""

    speed: LinkSpeed
    #: Seconds that a process computes for all micro-batches of a step, and that the link takes for one host in it; None
    #: if the time of computing is unknown.
    compute_s: float | None = None
    link_s: float | None = None
    options: list[LinkOption] = []

    def lines(self) -> list[str]:
        lines = [f"{'link':<10} {self.speed.text()}, as it is used now"]
        if self.compute_s is None or self.link_s is None:
            return [*lines, f"{'advice':<10} none: no worker has computed yet; ask again when one has"]
        lines.append(
            f"{'a step':<10} {_ms(self.compute_s)} of computing in one process, {_ms(self.link_s)} of link per host"
        )
        heading = f"{'':<10} {'':<42}{'hosts':>6}{'images/s':>10}{'speedup':>9}"
        return [*lines, heading, *map(_line, self.options), *self._recommendation()]

    def _recommendation(self) -> Iterator[str]:
        for option in self.options:
            if option.is_recommended:
                several = "1 host helps" if option.hosts == 1 else f"up to {option.hosts} hosts help"
                yield f"{'advice':<10} {option.name}: {several}"
                if option.flags:
                    yield f"  {option.flags}"
                return
        yield f"{'advice':<10} train at the server alone: over this link no host makes it faster"


def _line(option: LinkOption) -> str:
    return f"{'':<10} {option.name:<42}{option.hosts:>6}{option.images_per_s:>10,.0f}{option.speedup:>8.1f}x"


def seconds_per_sample(status: Status) -> float | None:
    """Return the seconds that the workers of a run have needed for a sample; None if they have computed none yet."""
    samples = sum(worker.samples for worker in status.workers)
    return sum(worker.compute_s for worker in status.workers) / samples if samples else None


def most_local_steps(job: Job, status: Status) -> int:
    """Return with how many local steps a run still has `FEWEST_EXCHANGES` exchanges, and one in each epoch."""
    return status.steps * job.local_steps // max(FEWEST_EXCHANGES, status.epochs)


def advice_of(job: Job, size: int, speed: LinkSpeed, sample_s: float | None, most: int = WAYS[-1][0]) -> LinkAdvice:
    """Return what would make a job fast over a link, with at most so many local steps.

    `sample_s` are the seconds that a process takes for a sample.
    """
    if sample_s is None or not size:
        return LinkAdvice(speed=speed)
    now = _model_of(job, size, speed, sample_s)
    at = Machines(link=speed.bytes_per_s)
    is_exact = job.wire == job.wire_weights == "float32"
    options = [
        _option(job, steps, now, speed, is_rounded=is_rounded)
        for steps, is_rounded in WAYS
        if (job.local_steps < steps <= most or steps == 1) and (is_exact or not is_rounded)
    ]
    compute_s, link_s = now.compute_s(1), now.link_s(at)
    return LinkAdvice(speed=speed, compute_s=compute_s, link_s=link_s, options=_recommended(options))


def _recommended(options: Sequence[LinkOption]) -> list[LinkOption]:
    """Mark the first option that is enough, which changes the job least; or else the fastest if it helps at all."""
    enough = [each for each in options if each.link_share <= LINK_SHARE and each.speedup >= FASTER]
    fastest = max(options, key=lambda each: each.speedup)
    best = enough[0] if enough else fastest if fastest.speedup > 1.0 / CLOSE else None
    return [msgspec.structs.replace(each, is_recommended=each is best) for each in options]


def _model_of(job: Job, size: int, speed: LinkSpeed, sample_s: float) -> CostModel:
    samples = job.global_batch / job.micro_batches
    return CostModel(
        parameters=size,
        micro_batch_samples=samples,
        micro_batch_s=samples * sample_s,
        micro_batches=job.micro_batches,
        latency_s=speed.round_trip_s,
        per_host_s=BYTES_PER_PARAMETER * size / HANDLING,
        update_s=UPDATE_S * size,
        bytes_per_parameter=bytes_per_parameter(job.wire, job.wire_weights),
    )


def _option(job: Job, steps: int, model: CostModel, speed: LinkSpeed, *, is_rounded: bool) -> LinkOption:
    names, flags = list[str](), list[str]()
    if steps > 1:
        model = model.with_local_steps(steps, job.local_steps)
        names.append(f"{steps} local steps")
        flags += ["--local-steps", str(steps), "--global-batch", str(job.global_batch * steps // job.local_steps)]
    if is_rounded:
        model = replace(model, bytes_per_parameter=bytes_per_parameter(*ROUNDED))
        names.append(" and ".join(ROUNDED))
        flags += ["--wire", ROUNDED[0], "--wire-weights", ROUNDED[1]]

    def machines(hosts: int) -> Machines:
        return Machines(workers=hosts, hosts=hosts, link=speed.bytes_per_s)

    counts = range(1, min(job.micro_batches, MOST_HOSTS) + 1)
    speeds = [model.samples_per_s(machines(hosts)) for hosts in counts]
    hosts = next(hosts for hosts, each in zip(counts, speeds, strict=True) if each >= CLOSE * max(speeds))
    alone = model.samples_per_s(Machines(is_local=True))
    return LinkOption(
        name=", ".join(names) or "as it is",
        flags=" ".join(flags),
        hosts=hosts,
        images_per_s=speeds[hosts - 1],
        speedup=speeds[hosts - 1] / alone,
        link_share=model.link_share(machines(hosts)),
    )


def _ms(seconds: float) -> str:
    """Return a time in three digits, or whole milliseconds."""
    return f"{seconds * 1e3:,.0f} ms" if seconds >= 1.0 else f"{seconds * 1e3:.3g} ms"


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
    #: Findings on the way, as (heading, text), up to the first obstacle.
    steps: list[tuple[str, str]]
    findings: list[Finding]
    #: The measured link; None if it could not be measured.
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
    #: Findings about the link, once it was measured.
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
        """Return the answer, with the key of a standby too that the key file lists: it may lead the run by now."""
        *standbys, server = keyed(self.credential, self.address)
        answers = []
        for one in (server, *standbys):
            with closing(dial_with(self.credential, one.address, one.public)) as port:
                answers.append(answer := self._ask(port))
            if not isinstance(answer, Diagnosis) or not answer.has_other_key:
                return answer
        return answers[0]

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
        """Return the answer of the server to a joining worker, or why it gave no answer."""
        join = Join(
            protocol=PROTOCOL_VERSION,
            incarnation=secrets.token_hex(8),
            host=platform.node() or "unknown",
            pid=os.getpid(),
            fingerprint=self.shown,
        )
        port.send(encode(join))
        now, diagnosis = self.clock.now(), None
        deadline, look = now + TIMEOUT_S, now + INTERVAL_S
        while (now := self.clock.now()) < deadline:
            frames = port.receive(min(HANDSHAKE_S, deadline - now))
            if frames is None:
                if now < look and (diagnosis is not None or not port.is_failing):
                    continue
                diagnosis, look = port.diagnosis(), now + INTERVAL_S
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

        A model in a user's files is not run for this.
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
                steps.append(("run", f"{answer.run}: a worker started here would be admitted"))
            case Finished():
                steps.append(("run", f"is over{answer.reason and ': '}{answer.reason}"))
            case Status():
                steps.append(("run", f"{answer.run}, {answer.phase}"))
        return self._connection(steps)

    def _connection(self, steps: list[tuple[str, str]], *findings: Finding) -> Connection:
        return Connection(address=self.address, steps=steps, findings=list(findings), link=self._link)
