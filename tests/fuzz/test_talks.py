"""A result of a lease that is almost one: answered or refused, by a server that goes on as before."""

from dataclasses import dataclass, field

import msgspec

from lockstep.common.job.tally import pack_losses
from lockstep.common.protocol.codec import Buffer, decode, encode
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import (
    OF_A_STEP,
    PROTOCOL_VERSION,
    Eviction,
    Finished,
    Join,
    Lease,
    Message,
    Ready,
    Refused,
    Result,
    ServerMessage,
    SumsFrame,
    Welcome,
)
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.transport.in_memory import MemoryClient
from tests.fuzz.bar import amounts, examine
from tests.fuzz.tape import Tape
from tests.fuzz.test_processes import OPENING
from tests.fuzz.wire import almost, packed
from tests.simulation.cluster import Simulation
from tests.simulation.simulator.jobs import data, jobs

JOIN = Join(protocol=PROTOCOL_VERSION, incarnation="liar", host="h", pid=1, fingerprint=fingerprint(), run="")

#: As many steps that no run comes to its end before it is left.
JOB = msgspec.structs.replace(jobs()["plain"], steps=10_000)


@dataclass
class Talk:
    """A server, and one who talks to it."""

    simulation: Simulation = field(init=False)
    client: MemoryClient = field(init=False)
    leases: list[Lease] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.simulation = Simulation(JOB, options=RunOptions(min_workers=1), data=data)
        self.client = self.simulation.network.client()
        self.leases.clear()

    def say(self, frames: list[Buffer]) -> list[Message]:
        """Say something, and return what is answered; the server's books and its log are in order."""
        self.client.send(frames)
        self.simulation.run_until_quiet()
        assert all(text.replace("\n", "").isprintable() for text in self.simulation.said)
        self.simulation.said.clear()
        return self.answers()

    def answers(self) -> list[Message]:
        told = []
        while (frames := self.client.receive(0.0)) is not None:
            told.append(decode(frames, ServerMessage)[0])
        self.leases += [message for message in told if isinstance(message, Lease)]
        return told

    def work(self) -> None:
        """Be a worker that has a lease: a new one where the last has none, or was sent away."""
        if self.simulation.server.ended is not None:
            self.__post_init__()
        if not self.leases:
            self.client.close()
            self.simulation.run_until_quiet()
            self.client = self.simulation.network.client()
            (welcome,) = [message for message in self.say(encode(JOIN)) if isinstance(message, Welcome)]
            self.say(encode(Ready(rank=welcome.rank, part=welcome.part)))
        assert self.leases


def answer_to(lease: Lease) -> Result:
    """Return what is plausible of a lease."""
    batch = min(JOB.global_batch, 20 - lease.step % 3 * JOB.global_batch)
    count = lease.hi * batch // 4 - lease.lo * batch // 4
    is_of_a_step = lease.work in OF_A_STEP
    return Result(
        work=lease.work,
        step=lease.step,
        lo=lease.lo,
        hi=lease.hi,
        loss_sum=1.0,
        count=count if is_of_a_step else 9,
        compute_s=0.1,
        number=lease.number,
        losses=pack_losses([1.0] * (lease.hi - lease.lo)) if is_of_a_step else b"",
    )


def sums_for(lease: Lease) -> list[Buffer]:
    """Return the message that comes before the result of a lease, none if it has no sums."""
    if lease.work != "train":
        return []
    frame = SumsFrame(step=lease.step, lo=lease.lo, hi=lease.hi, start=0)
    return [packed(msgspec.to_builtins(frame)), bytes(4 * OPENING.layout.size)]


@amounts("results")
def test_results(cases: int) -> None:
    talk = Talk()

    def check(tape: Tape) -> None:
        talk.work()
        lease = talk.leases.pop()
        sums = sums_for(lease)
        if sums and tape.happens(6):
            sums = [sums[0], *[tape.raw(4 * tape.below(60))] * tape.below(2)]
        told = talk.say(sums) if sums else []
        told += talk.say([almost(tape, answer_to(lease))])
        if any(isinstance(message, Refused | Eviction | Finished) for message in told):
            talk.leases.clear()

    examine(cases, lambda tape: tape, check)


def test_a_result_that_is_one_is_followed_by_more_leases() -> None:
    talk = Talk()
    for _ in range(20):
        talk.work()
        lease = talk.leases.pop(0)
        told = talk.say(sums) if (sums := sums_for(lease)) else []
        told += talk.say([packed(msgspec.to_builtins(answer_to(lease)))])
        assert not any(isinstance(message, Refused | Eviction | Finished) for message in told)
    assert talk.simulation.server.coordinator.round.step > 2
