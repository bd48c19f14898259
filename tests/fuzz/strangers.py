"""Somebody who speaks to a server as a worker would, and lies: the run has to come to its end all the same.

What is not among the lies are sums that the liar was asked for: these are believed, unless they are audited.
"""

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec
import numpy as np

from lockstep.common.errors import RemoteProtocolError
from lockstep.common.job.job import Job
from lockstep.common.protocol.codec import Buffer, decode, encode
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import (
    CORES_LIMIT,
    PROTOCOL_VERSION,
    CallbackDecision,
    ComputeFailed,
    Diverged,
    Dropped,
    Eviction,
    Finished,
    Join,
    Leave,
    Message,
    Ping,
    Ready,
    Refused,
    Result,
    ServerMessage,
    StatusRequest,
    SumsFrame,
    Welcome,
)
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.transport.in_memory import MemoryClient
from tests.fuzz.tape import Tape
from tests.fuzz.wire import frames_of, made_up
from tests.simulation.cluster import Simulation
from tests.simulation.simulator.jobs import data, jobs

#: Turns that are taken after each lie, and steps of a run: enough that it does not end before its liar.
TURNS, STEPS = 3, 40


def job_over(servers: int) -> Job:
    name = "plain" if servers == 1 else "wide"
    return msgspec.structs.replace(jobs()[name], steps=STEPS)


@cache
def honest_digest(servers: int) -> str:
    """Return what the run comes to without anybody who lies."""
    simulation = Simulation(job_over(servers), options=RunOptions(min_workers=1, servers=servers), data=data)
    simulation.add_worker()
    return simulation.finish()


@dataclass
class Stage:
    """One run, two honest workers, and a liar, who comes back as another whenever it is sent away."""

    servers: int = 1
    simulation: Simulation = field(init=False)
    client: MemoryClient = field(init=False)
    #: Whether the liar takes part as a worker: it is given leases then, which run out.
    is_worker: bool = False
    lives: int = 0

    def __post_init__(self) -> None:
        options = RunOptions(min_workers=2, servers=self.servers)
        self.simulation = Simulation(job_over(self.servers), options=options, data=data)
        for _ in range(2):
            self.simulation.add_worker()
        self.appear(joins=True)

    def is_over(self) -> bool:
        return self.simulation.server.ended is not None

    def appear(self, *, joins: bool) -> None:
        """Come as somebody new, perhaps as a worker."""
        self.lives += 1
        self.client, self.is_worker = self.simulation.network.client(), joins
        if joins:
            self.client.send(encode(self.join()))

    def join(self) -> Join:
        incarnation = f"liar-{self.lives}"
        return Join(protocol=PROTOCOL_VERSION, incarnation=incarnation, host="h", pid=1, fingerprint=fingerprint())

    def listen(self) -> bool:
        """Read what the server says; return whether it was sent away."""
        while (frames := self.client.receive(0.0)) is not None:
            try:
                message, _ = decode(frames, ServerMessage)
            except RemoteProtocolError:
                continue
            if isinstance(message, Refused | Eviction | Finished):
                return True
            if isinstance(message, Welcome):
                self.client.send(encode(Ready(rank=message.rank, part=message.part)))
        return False

    def lie(self, frames: list[Buffer]) -> None:
        """Say something, and let the others go on."""
        if self.listen():
            self.appear(joins=self.lives % 2 != 0)
        if not self.may_be_believed(frames):
            self.client.send(frames)
        for _ in range(TURNS):
            if not self.is_over():
                assert self.simulation.turn(), "nobody acts, and nobody waits"

    def may_be_believed(self, frames: list[Buffer]) -> bool:
        """Tell whether this may be an answer to a lease that is on its way to the liar, who then would be believed."""
        try:
            message, _ = decode(frames, Result | SumsFrame | Diverged | ComputeFailed)
        except RemoteProtocolError:
            return False
        coordinator = self.simulation.server.coordinator
        if isinstance(message, Diverged | ComputeFailed):
            held = {lease.number for leases in coordinator.leases.held.values() for lease in leases}
            return self.is_worker and (message.number in held or message.number > max(held, default=0))
        assert isinstance(message, Result | SumsFrame)
        return self.is_worker and 0 <= message.step - coordinator.round.step <= 1

    def end(self) -> None:
        """Let the run go on to its end: with the bits of one without lies."""
        self.client.close()
        assert self.simulation.finish() == honest_digest(self.servers)

    # What the liar says

    def message(self, tape: Tape) -> list[Buffer]:
        """Return what a worker might say, with values near to those that would be right."""
        coordinator = self.simulation.server.coordinator
        step = max(0, coordinator.round.step + tape.choose((0, 0, 0, -1, 1, 2**40)))
        lo = tape.below(5)
        hi = lo + tape.choose((1, 1, 2, 4, 0, 2**31 - 8))
        work: Any = tape.choose(("train", "train", "evaluate", "audit", "validate"))
        size = self.simulation.server.shard.weights.size
        choices: tuple[Message, ...] = (
            self.join(),
            msgspec.structs.replace(self.join(), incarnation=tape.choose(("worker-0", "worker-1", "", "x" * 255))),
            msgspec.structs.replace(
                self.join(),
                machine=tape.choose(("", "host", "x" * 255)),
                cores=tape.choose(([], [0, 0, 2**62], [*range(CORES_LIMIT)])),
            ),
            Ready(
                nonce=tape.choose(("", "0" * 32, "f" * 32)),
                obstacle=tape.choose(("", "\x1b[2J\n")),
                rank=tape.choose((0, 1, 2, 2**31)),
                part=coordinator.info.part,
            ),
            SumsFrame(step=step, lo=lo, hi=hi, start=tape.choose((0, 1, size, 4096, 2**62))),
            Result(
                work=work,
                step=step,
                lo=lo,
                hi=hi,
                loss_sum=tape.choose((0.0, 1.5, math.nan, math.inf, -1e308)),
                count=tape.choose((0, 2, 4, 8, 2**62)),
                compute_s=tape.choose((0.0, 0.1, 1e9)),
                number=tape.below(12),
                start=tape.choose((None, 0, 1, size, 2**62)),
                losses=bytes(4 * min(4096, tape.choose((hi - lo, 0, 1, 4096)))),
                digest=tape.choose(("", "0" * 64)),
            ),
            ComputeFailed(number=tape.below(12), traceback=tape.choose(("", "error: x\n\x1b[2J", "x" * 20_000))),
            Diverged(number=tape.below(12), micro_batch=tape.below(5), layer="\u03bb"),
            Dropped(number=tape.below(12), computed=tape.choose((0, 1, 4, 2**31))),
            Leave(reason="\nerror: forged"),
            Ping(),
            StatusRequest(),
            CallbackDecision(epoch=tape.below(3), stops=True),
        )
        message = tape.choose(choices)
        frames: list[Buffer] = [frames_of(message)[0]]
        if isinstance(message, SumsFrame) or (isinstance(message, Result) and tape.happens()):
            value = tape.choose((0.0, 1.0, math.nan, math.inf, 1e38))
            length = tape.choose((size, size, size - 1, 1, 0, 2 * size))
            frames.append(np.full(length, value, np.float32).tobytes())
        return frames

    def anything(self, tape: Tape) -> list[Buffer]:
        """Return what anybody might say."""
        if tape.happens(4):
            return [made_up(tape), *([tape.raw(4 * tape.below(9))] if tape.happens() else [])]
        return self.message(tape)
