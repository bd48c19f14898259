"""A coordinator driven by hand: workers are small numbers, time is told, all is validated after each event."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import FailureKind
from lockstep.common.job.job import Job
from lockstep.common.job.tally import pack_losses
from lockstep.common.protocol.fingerprint import Fingerprint, fingerprint
from lockstep.common.protocol.messages import (
    PROTOCOL_VERSION,
    ComputeFailed,
    Diverged,
    Join,
    Lease,
    Message,
    Ping,
    Ready,
    Result,
)
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Effect, Finish, Report, Send, UpdateWeights
from lockstep.ps.coordinator.parts.assembly import all_parts
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import plan_of

DIGEST = "0123456789abcdef" * 4

#: A person ends the run.
INTERRUPT = events.PartFailed(text="interrupted", kind=FailureKind.INTERRUPTED)

#: What a worker reads that shares memory.
NONCE = "0" * 32

#: Samples of the training and of the test set: two epochs of three steps, one piece of evaluation.
TRAIN, TEST = 40, 100


def facts_of(
    job: Job | None = None, *, min_workers: int = 1, test_samples: int = TEST, is_mixed: bool = False
) -> RunInfo:
    """Return the facts of a run of three steps an epoch."""
    job = job or Job(model="linear", epochs=2, global_batch=16, micro_batches=4)
    return RunInfo(
        run="test",
        job=job,
        plan=plan_of(job, TRAIN, test_samples),
        training_samples=TRAIN,
        layout=DIGEST,
        dataset=DIGEST,
        source="",
        fingerprint=fingerprint(),
        options=RunOptions(min_workers=min_workers, allow_mixed_numerics=is_mixed),
    )


def with_options(info: RunInfo, **options: Any) -> RunInfo:
    """Return the facts of a run with these options."""
    return replace(info, options=msgspec.structs.replace(info.options, **options))


def peer_of(worker: int) -> bytes:
    return worker.to_bytes(2, "big")


def join_of(
    worker: int, *, protocol: int = PROTOCOL_VERSION, numerics: Fingerprint | None = None, processes: int = 1
) -> Join:
    return Join(
        protocol=protocol,
        incarnation=f"life-{worker}",
        host="host",
        pid=worker,
        fingerprint=numerics or fingerprint(),
        processes=processes,
    )


def other_numerics() -> Fingerprint:
    return msgspec.structs.replace(fingerprint(), kernel="Z80", kernels="Z80")


def result_of(lease: Lease) -> Result:
    """Return a result whose loss and count tell which pieces it is of."""
    count = lease.hi - lease.lo
    return Result(
        work=lease.work,
        step=lease.step,
        lo=lease.lo,
        hi=lease.hi,
        loss_sum=float(count),
        count=count,
        compute_s=0.5,
        number=lease.number,
        losses=pack_losses([1.0] * count),
    )


@dataclass
class Drive:
    """A coordinator, the time, and what every worker was sent and has not answered yet."""

    info: RunInfo = field(default_factory=facts_of)
    now: float = 100.0
    coordinator: Coordinator = field(init=False)
    leases: dict[int, list[Lease]] = field(default_factory=dict)
    #: All effects so far.
    effects: list[Effect] = field(default_factory=list)
    #: Of all training results that counted, the nodes, in order.
    counted: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.coordinator = Coordinator(self.info, all_parts())

    def happen(self, event: events.Event) -> list[Effect]:
        """Let the coordinator handle an event at the present time; it is to be consistent afterwards."""
        account = self.coordinator.state.account
        before = len(account.shares)
        effects = self.coordinator.handle(event, self.now)
        for update in [effect for effect in effects if isinstance(effect, UpdateWeights)]:
            # As a server does that has all of the weights.
            effects += self.coordinator.handle(events.StepUpdated(step=update.step), self.now)
        for finish in [effect for effect in effects if isinstance(effect, Finish)]:
            effects += self.coordinator.dismiss(finish)
        self.counted += [Node(share.lo, share.hi) for share in account.shares[before:]]
        self.coordinator.validate()
        deadline = self.coordinator.deadline()
        if isinstance(event, events.TimePassed):
            assert deadline is None or deadline > self.now, "time would not go on"
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, Lease):
                self.leases.setdefault(int.from_bytes(effect.peer, "big"), []).append(effect.message)
        self.effects += effects
        return effects

    def join(self, worker: int, processes: int = 1) -> list[Effect]:
        return self.happen(events.Received(peer=peer_of(worker), message=join_of(worker, processes=processes)))

    def prepare(self, worker: int, *, shares: bool = False, obstacle: str = "", makers: int = 0) -> list[Effect]:
        # The place is compared by who turns frames into events.
        ready = Ready(
            rank=worker,
            part=self.coordinator.info.part,
            nonce=NONCE if shares else "",
            obstacle=obstacle,
            makers=makers,
        )
        return self.happen(events.Received(peer=peer_of(worker), message=ready))

    def enter(self, *workers: int, shares: bool = False) -> list[Effect]:
        """Let workers join and be ready."""
        return [effect for worker in workers for effect in self.join(worker) + self.prepare(worker, shares=shares)]

    def enter_team(self, worker: int, processes: int = 2) -> list[Effect]:
        """Let a team join that shares memory, and be ready."""
        return self.join(worker, processes) + self.prepare(worker, shares=True, makers=processes)

    def ask(self, worker: int) -> list[Effect]:
        return self.happen(events.Received(peer=peer_of(worker), message=Ping()))

    def leave(self, worker: int, reason: str = "interrupted") -> list[Effect]:
        self.leases.pop(worker, None)
        return self.happen(events.PeerLeft(peer=peer_of(worker), reason=reason))

    def answer(self, worker: int) -> list[Effect]:
        """Let a worker answer the first of its leases."""
        return self.send(worker, result_of(self.leases[worker].pop(0)))

    def send(self, worker: int, result: Result) -> list[Effect]:
        return self.happen(events.Received(peer=peer_of(worker), message=result))

    def fail(self, worker: int, traceback: str = "Traceback: boom") -> list[Effect]:
        """Let a worker raise on the first of its leases."""
        lease = self.leases[worker].pop(0)
        failed = ComputeFailed(number=lease.number, traceback=traceback)
        return self.happen(events.Received(peer=peer_of(worker), message=failed))

    def diverge(self, worker: int, micro_batch: int = 2) -> list[Effect]:
        """Let a worker report a loss that is not finite, in the first of its leases."""
        number = next((lease.number for lease in self.leases.get(worker, ())), 0)
        diverged = Diverged(number=number, micro_batch=micro_batch, layer="3 (Linear)")
        return self.happen(events.Received(peer=peer_of(worker), message=diverged))

    def pass_time(self, seconds: float) -> list[Effect]:
        """Let time pass, waking the coordinator at each of its deadlines."""
        end, effects = self.now + seconds, list[Effect]()
        while (due := self.coordinator.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            effects += self.happen(events.TimePassed())
        self.now = end
        return effects

    def finish_round(self) -> list[Effect]:
        """Answer all leases until the round is another one, or the run is over."""
        at, effects = self.coordinator.round, list[Effect]()
        while self.coordinator.round is at and not self.coordinator.is_over():
            worker = next(worker for worker, leases in self.leases.items() if leases)
            effects += self.answer(worker)
        return effects

    def finish(self) -> list[Effect]:
        """Answer all leases until the run is over."""
        effects: list[Effect] = []
        while not self.coordinator.is_over():
            effects += self.finish_round()
        return effects

    def leased(self) -> list[Node]:
        """Return the nodes that are leased and not answered, in order."""
        return sorted(Node(lease.lo, lease.hi) for leases in self.leases.values() for lease in leases)


def messages(effects: list[Effect], worker: int | None = None) -> list[Message]:
    """Return the messages among effects, to one worker or to all."""
    return [
        effect.message
        for effect in effects
        if isinstance(effect, Send) and (worker is None or effect.peer == peer_of(worker))
    ]


def kinds(effects: list[Effect], worker: int | None = None) -> list[type[Message]]:
    return [type(message) for message in messages(effects, worker)]


def said(effects: list[Effect]) -> str:
    return "\n".join(effect.text for effect in effects if isinstance(effect, Report))


def called(effects: list[Effect]) -> list[str]:
    return [effect.text for effect in effects if isinstance(effect, Report) and effect.text.startswith("waiting for")]


def finished(effects: list[Effect]) -> list[Finish]:
    return [effect for effect in effects if isinstance(effect, Finish)]
