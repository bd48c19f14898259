"""The server's shell: turns frames into events and effects into frames, sends samples, has files written.

It decides nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import assert_never

import msgspec
import numpy as np

from lockstep.common.aggregation.tree import Vector
from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.manifest import Manifest, packed, part_of
from lockstep.common.errors import RESUMED_HERE, FailureKind, RemoteProtocolError
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import (
    ECHO_LIMIT,
    PROTOCOL_VERSION,
    Echo,
    Eviction,
    Join,
    Lease,
    Leave,
    Message,
    MultiStepLease,
    MultiStepResult,
    MultiStepWithdrawal,
    Ready,
    Refused,
    Result,
    Samples,
    SamplesRequest,
    StatusRequest,
    SumsFrame,
    WorkerMessage,
    shortened,
)
from lockstep.common.protocol.shard_messages import ShardMessage
from lockstep.common.protocol.standby_messages import StandbyMessage
from lockstep.common.protocol.team_memory import TeamShape
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.interrupts import Terminated, held_back
from lockstep.common.runtime.notice import notice, warning
from lockstep.common.statemachine.delivery import deliver
from lockstep.common.statemachine.machine import carry_out, soonest
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.port import ClientPort, Dial, ServerPort
from lockstep.ps.checkpoint.checkpointer import Checkpointer
from lockstep.ps.coordinator import effects, events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.failures import check_result
from lockstep.ps.coordinator.findings import MicroBatchOutcome
from lockstep.ps.coordinator.membership import Member
from lockstep.ps.coordinator.scheduling.round_state import WINDOW
from lockstep.ps.records.recorder import MetricsRecorder
from lockstep.ps.records.room import LOOK_S
from lockstep.ps.run.traffic import Traffic
from lockstep.ps.server.limits import PeerBlocklist, StatusRateLimit
from lockstep.ps.server.step_committer import StepCommitter
from lockstep.ps.server.succession import Succession
from lockstep.ps.setup import RunSetup
from lockstep.ps.shard.partition import own_part
from lockstep.ps.shard.service import SliceService
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shard_group.group import SliceGroup
from lockstep.ps.shard_group.initial import InitialSlices
from lockstep.ps.shared_memory.memory import ServerSharedMemory
from lockstep.ps.shared_memory.multi_step_leases import MultiStepLeases
from lockstep.ps.standby.source import MirrorSource

#: Returns what an honest worker finds for a micro-batch, given the weights and the step; None if that cannot be found.
Recompute = Callable[[RunSetup, Vector, int, int], MicroBatchOutcome | None]

#: Seconds between two calls of `watch`, which shows the progress.
WATCH_S = 0.1

#: Messages without arrays that may wait for a worker. In addition it may have the weights for a window of leases: a
#: worker that does not read costs no more memory than that.
QUEUE = 16


class SampleSender(msgspec.Struct, frozen=True):
    """The data of a run, for workers that do not have it."""

    data: TrainTest
    manifest: Manifest

    def answer(self, asked: SamplesRequest) -> tuple[Samples, Vector]:
        """Return the samples that are asked for; `RemoteProtocolError` if there are none such, or too many."""
        part, facts = part_of(self.data, asked.part), self.manifest.parts().get(asked.part)
        if part is None or facts is None:
            raise RemoteProtocolError(f"samples of {asked.part!r} are asked for: this run has no such set")
        if len(asked.places) % 4 or not 0 < len(asked.places) // 4 <= facts.in_a_message():
            raise RemoteProtocolError(
                f"samples at {len(asked.places)} bytes of places are asked for: expected 1 to {facts.in_a_message()} "
                "of 4 each"
            )
        places = np.frombuffer(asked.places, "<u4").astype(np.int64)
        if places.max() >= facts.samples:
            raise RemoteProtocolError(f"sample {int(places.max())} is asked for: expected one below {facts.samples}")
        return Samples(part=asked.part, places=asked.places), packed(part, places)


@dataclass
class Server:
    """One run at the server: the coordinator, the server's own slice of the weights, and what effects act on."""

    coordinator: Coordinator
    #: What the run begins with; the memory of its shard may be the one that workers share.
    setup: RunSetup
    recorder: MetricsRecorder
    port: ServerPort
    clock: Clock
    say: Callable[[str], None]
    _: KW_ONLY
    #: Shows what the run still waits for; by default `say` does.
    remind: Callable[[str], None] | None = None
    #: The memory that workers and shards on this machine share, if there is any.
    sharing: ServerSharedMemory | None = None
    #: Takes the checkpoints, if there are to be any.
    checkpointer: Checkpointer | None = None
    #: Computes a micro-batch in this process if workers differ, None if that is not possible.
    recompute: Recompute | None = None
    #: Returns, by the names of keys, the public keys of signatures.
    signers: Callable[[], Mapping[str, str]] = dict
    #: Connections that were not let in.
    rejections: RejectionLog = field(default_factory=RejectionLog)
    #: How other servers are reached, None if there can be none; and the one that led the run before, if it is not known
    #: to be gone.
    dial: Dial | None = None
    #: Where this server is reached; by default, where it listens.
    address: str = ""
    #: Who is admitted, None if the run has no keys.
    allowed: Callable[[], Mapping[str, str]] | None = None
    predecessor: ClientPort | None = None
    #: Whether it hands the run over to a standby when it gets SIGTERM, and whether it does so now.
    hands_over: bool = False
    is_leaving: bool = False
    #: Set once the run has ended.
    ended: effects.Finish | None = None
    #: Bytes that crossed the sockets of all servers since the last step was recorded.
    traffic: Traffic = field(default_factory=Traffic)
    status_limit: StatusRateLimit = field(default_factory=StatusRateLimit)
    blocklist: PeerBlocklist = field(init=False)
    #: All servers of the run; its `own` slice is `shard`.
    group: SliceGroup = field(init=False)
    shard: Shard = field(init=False)
    #: Steps that a team makes by itself.
    multi_step: MultiStepLeases = field(init=False)
    #: The standbys of the run, and servers of other terms.
    succession: Succession = field(init=False)
    committer: StepCommitter = field(init=False)
    #: The samples for workers that lack the data, None if the run does not send any.
    samples: SampleSender | None = field(init=False)
    #: Checks signatures, None if results are not signed.
    _check_signature: Callable[[Result, str], None] | None = None
    #: The arrays of the message at hand.
    _arrays: list[Vector] = field(default_factory=list)
    #: When the progress was last shown.
    _shown: float = -math.inf
    #: When to look next whether the disk has room; None while it has.
    _room_due: float | None = None
    #: The end of the run, until it is written.
    _finish: effects.Finish | None = None

    def __post_init__(self) -> None:
        coordinator, setup = self.coordinator, self.setup
        info = coordinator.info
        self.blocklist = PeerBlocklist(self.port, self.clock, self.say, self.rejections)
        self.group = self._open_slices()
        self.shard = self.group.own.shard
        self.multi_step = MultiStepLeases(
            self.shard, self.clock, self._send_multi_step, self.say, self.sharing if info.options.servers == 1 else None
        )
        folder = Path() if self.recorder.folder is None else self.recorder.folder.path
        self.succession = Succession(
            coordinator,
            self.group,
            MirrorSource(folder, self.allowed),
            self.port,
            self.clock,
            self.say,
            address=self.address or self.port.address,
            dial=self.dial,
            predecessor=self.predecessor,
        )
        self.committer = StepCommitter(
            coordinator, self.group, self.recorder, self.checkpointer, self.say, self.traffic
        )
        if info.options.signed:
            # Only where it is needed: its library is not part of the core.
            from lockstep.ps.server.signatures import SignatureCheck

            self._check_signature = SignatureCheck(info.signed_run, info.job.digest()).check
        self.samples = None if info.manifest is None else SampleSender(setup.data, info.manifest)
        # Now that the model is known, and before anybody takes part.
        self.port.make_room(max(QUEUE + WINDOW * len(self.shard.frames), self.group.initial.most_waiting()))

    def _open_slices(self) -> SliceGroup:
        info, setup, sharing = self.coordinator.info, self.setup, self.sharing
        initial = InitialSlices(info, setup.shard, (len(setup.data.train), len(setup.data.test)))
        own = setup.shard if info.options.servers == 1 else own_part(setup.shard, initial.slices[0])
        return SliceGroup(
            initial,
            SliceService(own, self._send),
            self.coordinator.membership,
            port=self.port,
            clock=self.clock,
            report=self._report,
            report_refusal=self.blocklist.report_refusal,
            sums_of=None if sharing is None else sharing.sums.__getitem__,
            nonce="" if sharing is None else sharing.folder.nonce.hex(),
        )

    def run(self, watch: Callable[[], None] = lambda: None) -> effects.Finish:
        """Serve until the run is over; `watch` is called now and then, and at the end, to show the progress."""
        is_interrupted = False
        try:
            try:
                while self.ended is None:
                    self._go_on(watch)
            except KeyboardInterrupt:
                is_interrupted = True
                self.interrupt()
            if self.ended is not None:
                self._see_off(self.ended)
        except KeyboardInterrupt:
            is_interrupted = True  # standbys do without the rest
        finally:
            self.succession.close()
            self.recorder.close()
        # None after an interrupt between the run's end and the writing of its result, which then is not there.
        if self.ended is None or (is_interrupted and self.ended.kind in RESUMED_HERE):
            return effects.Finish(failure="interrupted", kind=FailureKind.INTERRUPTED)
        return self.ended

    def _go_on(self, watch: Callable[[], None]) -> None:
        """Do what is due; a machine that is to be stopped hands the run over if it can, and otherwise ends it."""
        try:
            self.step()
            self._show(watch)
        except Terminated:
            if not self.hands_over or self.is_leaving or self.succession.obstacle():
                raise
            self.is_leaving = True
            with held_back():
                self._dispatch(self.succession.hand_over())

    def interrupt(self) -> None:
        """End the run now, after the steps that a team has made by itself."""
        with held_back():
            self._dispatch(*self.multi_step.interrupt())
        self._dispatch(events.Interrupted())

    def _see_off(self, ended: effects.Finish) -> None:
        """Let standbys have what the run has come to, for a while; send everybody to the one that continues it."""
        self.begin_to_end(ended)
        while not self.succession.is_over(self.clock.now()):
            self.step()
        self.send_away()

    def begin_to_end(self, ended: effects.Finish) -> None:
        """Write what is to be written; from now on it is standbys that are waited for."""
        self.recorder.flush_if_due(math.inf)
        self.succession.end(ended, self.clock.now())

    def send_away(self) -> None:
        """Send everybody to the standby that the run was handed over to, if it was."""
        successor = self.succession.handed_over()
        if successor is not None:
            self._dispatch(*self.group.send_all(successor))
            for peer in list(self.coordinator.membership.members):
                self._send(peer, successor)

    def _show(self, watch: Callable[[], None]) -> None:
        now = self.clock.now()
        if self.ended is not None or now >= self._shown + WATCH_S:
            self._shown = now
            watch()
            self.recorder.flush_if_due(now)

    def step(self) -> bool:
        """Handle the passing of time, or one message; return whether anything happened."""
        with held_back():
            self._watch_room(self.clock.now())
        deadline, now = self.deadline(), self.clock.now()
        if self.succession.is_asking(now):
            with held_back():
                self._dispatch(*self.succession.ask(now))
            return True
        # First, since there may always be a message: leases run out and dead workers are noticed all the same.
        if deadline is not None and now >= deadline:
            with held_back():
                self._dispatch(*self._time_passed(now))
            return True
        received = self.port.receive(None if deadline is None else deadline - now)
        self.blocklist.report()
        # An interrupt finds an event handled, with all that is recorded of it, or not handled at all.
        with held_back():
            if received is not None:
                self._on_message(*received)
                return True
            lost = self.port.lost()
            for peer in lost:
                self._dispatch(*self._peer_gone(peer, "its connection is gone"))
            return bool(lost)

    def deadline(self) -> float | None:
        """Return when something is due although no message comes."""
        return soonest(
            self.coordinator.deadline(),
            self.group.deadline(),
            self.multi_step.deadline(),
            self.status_limit.deadline(),
            self._room_due,
            self.succession.deadline(),
        )

    def _watch_room(self, now: float) -> None:
        """Let the run wait while the disk has no room for its records, and look now and then whether it has."""
        room = self.recorder.room
        if room is None or (self._room_due is None and not room.is_lacking):
            return
        if self._room_due is None:
            self._room_due, text = now + LOOK_S, room.text
            self.say(warning(text))
            self._dispatch(events.RoomChanged(missing=text))
        elif now >= self._room_due and room.try_again(self._write_again):
            self._room_due = None
            self.say(notice("there is room again: the run continues"))
            self._dispatch(events.RoomChanged(missing=""))
        elif now >= self._room_due:
            self._room_due = now + LOOK_S

    def _write_again(self) -> None:
        self.committer.write_again()
        if self._finish is not None and self.recorder.room is not None and not self.recorder.room.is_lacking:
            self._write_end(self._finish)

    def _write_end(self, finish: effects.Finish) -> None:
        """Write what the run has come to; if the disk has no room for it, the run is not over before it has."""
        self._finish = finish
        try:
            self.ended = self.committer.finish(finish)
        except OSError as error:
            if self.recorder.room is None or not self.recorder.room.refuse(error, self.group.holder.weights.nbytes):
                raise

    def _time_passed(self, now: float) -> list[events.Event]:
        due = [self._status_requested(peer) for peer in self.status_limit.due(now)]
        due += self.group.on_time(now) + self.multi_step.on_time(now) + self.succession.on_time(now)
        at = self.coordinator.deadline()
        return [*due, events.TimePassed()] if at is not None and now >= at else due

    # Messages become events

    def _on_message(self, peer: bytes, frames: list[memoryview]) -> None:
        if self.blocklist.blocks(peer):
            return
        happened: Sequence[events.Event]
        try:
            message, self._arrays = decode(frames, WorkerMessage | ShardMessage | StandbyMessage)
            self.traffic.record_received(message, frames)
            happened = self._events_of(peer, message)
        except RemoteProtocolError as error:
            happened = self._turn_away(peer, str(error))
        self._dispatch(*happened)

    def _events_of(self, peer: bytes, message: Message) -> Sequence[events.Event]:
        """Do with a message what the coordinator has no hands for; return what it means to the coordinator."""
        if self.group.handles(peer, message):
            return self.group.on_message(peer, message, self._arrays)
        # Only a worker that joins says who it is.
        key = self.port.key_name(peer) if isinstance(message, Join) else ""
        signer = self.signers().get(key, "") if key and self.coordinator.info.options.signed else ""
        received = events.Received(peer=peer, message=message, key=key, signer=signer)
        match message:
            case Ready():
                fault = self._prepare(peer, message)
                if fault:
                    return self._ask_to_rejoin(peer, fault)
                # Before any lease, and so before any sums.
                member = self.coordinator.membership.members.get(peer)
                admitted = [] if member is None else self.group.admit(member, shares=bool(message.nonce))
                return [*admitted, received]
            case SumsFrame():
                return [received] if self.group.own.on_frame(peer, message, self._arrays[0]) else []
            case Result():
                check_result(message, self.coordinator.info)
                member = self.coordinator.membership.members.get(peer)
                if self._check_signature is not None and member is not None:
                    self._check_signature(message, member.join.signer)
                return [received] if self.group.own.on_result(peer, message, self._arrays) else []
            case MultiStepResult():
                return [*self._end_steps(peer, message), received]
            case Leave() if self.succession.has(peer):
                return self.succession.on_left(peer, one_line(message.reason), is_done=True)
            case Leave():
                return [events.PeerLeft(peer=peer, reason=one_line(message.reason))]
            case SamplesRequest():
                return self._send_samples(peer, message)
            case Echo():
                return self._send_back(peer, message)
            case _ if isinstance(message, StandbyMessage):
                return self.succession.on_message(peer, message)
            case StatusRequest():
                is_now = self.status_limit.ask(peer, self.clock.now())
                return [self._status_requested(peer)] if is_now else []
            case _ if not isinstance(message, events.CoordinatorMessage):
                raise RemoteProtocolError(f"a {type(message).__name__} is not a message for a server")
        return [received]

    def _end_steps(self, peer: bytes, ended: MultiStepResult) -> Sequence[events.Event]:
        member = self.coordinator.membership.members.get(peer)
        return [] if member is None else self.multi_step.on_answer(member.rank, ended)

    def _send_multi_step(self, rank: int, message: MultiStepLease | MultiStepWithdrawal) -> Sequence[events.Event]:
        """Send a worker what concerns a lease of several steps."""
        member = self.coordinator.membership.by_rank(rank)
        if member is None:
            return []
        if isinstance(message, MultiStepLease):
            message = msgspec.structs.replace(message, incarnation=member.join.incarnation)
        return self._send(member.peer, message)

    def _status_requested(self, peer: bytes) -> events.Event:
        broken = self.blocklist.broken.count
        return events.StatusRequested(
            peer=peer,
            refused=self.rejections.count,
            broken=broken,
            standbys=tuple(self.succession.registry.statuses()),
        )

    def _prepare(self, peer: bytes, ready: Ready) -> str:
        """Map what a worker that shares memory has there; return why that cannot be, or that it has another place."""
        member = self.coordinator.membership.members.get(peer)
        term = self.coordinator.info.term
        if member is not None and (ready.rank, ready.term) != (member.rank, term):
            return f"rank {ready.rank} in term {ready.term.number}, and this is {member.rank} in term {term.number}"
        if not ready.nonce:
            return ""
        if self.sharing is None:
            raise RemoteProtocolError("it shares memory that it was not offered")
        if member is not None:
            shape = self._team_shape(member, ready.makers) if ready.makers else None
            try:
                self.sharing.admit(member.rank, ready.nonce, shape)
            except RemoteProtocolError as error:
                return str(error)
        return ""

    def _ask_to_rejoin(self, peer: bytes, fault: str) -> Sequence[events.Event]:
        """Evict a worker that has prepared for another place, or whose memory is that of another one.

        It has broken no rule: it answers a welcome before the last one, since it asked twice, and its first place, or
        the memory of that time, or the server that welcomed it, is gone. Its shards may be gone as well: nothing that
        it computed would ever arrive.
        """
        self._send(peer, Eviction(reason=shortened(f"it is ready for another place: {fault}")))
        return self._peer_gone(peer, fault)

    def _team_shape(self, member: Member, makers: int) -> TeamShape:
        info = self.coordinator.info
        return TeamShape(
            processes=member.processes,
            makers=makers,
            micro_batches=info.job.micro_batches,
            size=self.setup.layout.size,
            clips=info.job.clip_norm is not None,
            metrics=info.metric_sums,
        )

    def _send_samples(self, peer: bytes, asked: SamplesRequest) -> Sequence[events.Event]:
        """Send samples to a worker, whose leases do not run out while they are on their way."""
        if self.samples is None:
            raise RemoteProtocolError("samples are asked for, which this run does not send: it lacks --ship-data")
        if peer not in self.coordinator.membership.members:
            return []
        return self._send(peer, *self.samples.answer(asked)) or [events.Received(peer=peer, message=asked)]

    def _send_back(self, peer: bytes, echo: Echo) -> Sequence[events.Event]:
        """Answer who measures the link with what it has sent."""
        (array,) = self._arrays
        if len(array) > ECHO_LIMIT:
            raise RemoteProtocolError(f"an echo of {len(array)} values: expected at most {ECHO_LIMIT}")
        return self._send(peer, echo, array) if peer in self.coordinator.membership.members else []

    def _turn_away(self, peer: bytes, fault: str) -> list[events.Event]:
        """Answer what cannot be understood: a worker of another version would wait for ever, not knowing why."""
        reason = f"it broke protocol {PROTOCOL_VERSION}: {fault}; install the same version of Lockstep on both machines"
        self._send(peer, Refused(reason=shortened(reason)))
        self.blocklist.add(peer, reason)
        return self._peer_gone(peer, reason)

    def _peer_gone(self, peer: bytes, reason: str) -> list[events.Event]:
        """Return what it means to the coordinator that a peer is gone: a worker, a shard, or neither."""
        if self.succession.has(peer):
            return [*self.succession.on_left(peer, reason)]
        if self.group.has(peer):
            return self.group.on_shard_gone(peer, reason)
        return [events.PeerLeft(peer=peer, reason=reason)]

    # Events become effects, and effects are carried out

    def _dispatch(self, *happened: events.Event) -> None:
        """Let the coordinator handle events, and whatever its effects lead to."""
        carry_out(self.coordinator, happened, self._perform, self.clock.now)
        # Afterwards: what workers wait for has been sent.
        self.committer.record_completed()
        # Never while a team makes steps, and so writes the weights: a multi-step lease ends when a checkpoint is due.
        if self.ended is None and self.multi_step.lease is None:
            self.committer.take_due_checkpoint()

    def _perform(self, effect: effects.Effect) -> Sequence[events.Event]:
        match effect:
            case effects.Send():
                return self._send(effect.peer, effect.message)
            case effects.SendWeights():
                member = self.coordinator.membership.members.get(effect.peer)
                return [] if member is None else self.group.send_weights(member.rank, effect.step)
            case effects.AddSharedSums():
                return self.group.add_shared(effect)
            case effects.ForgetWorker():
                if self.sharing is not None:
                    self.sharing.forget(effect.rank)
                return [*self.multi_step.forget(effect.rank), *self.group.forget(effect.rank)]
            case effects.UpdateWeights():
                return self.committer.update(effect)
            case effects.LeaseSteps():
                # The checksum of the last step's weights is taken before anybody may write over them.
                self.committer.record_completed()
                return self.multi_step.begin(effect, *self.committer.bounds())
            case effects.WithdrawSteps():
                return self.multi_step.end()
            case effects.Recompute():
                return [self._recompute(effect.step, effect.micro_batch)]
            case effects.RecordStep():
                self.committer.record_made(effect)
            case effects.RecordEpoch():
                self.committer.record_epoch(effect)
            case effects.Report():
                self._report(effect)
            case effects.ReportRefusal():
                self.blocklist.report_refusal(effect.text)
            case effects.Finish():
                self._write_end(effect)
            case _:
                assert_never(effect)
        return []

    def _recompute(self, step: int, micro_batch: int) -> events.Event:
        """Compute a micro-batch here; with several servers, of which one may not answer, that may not be possible.

        Afterwards this part of the run ends, whatever was found: what other servers send meanwhile is lost.
        """
        weights, updates = self.group.final_weights(is_diverged=False)
        is_possible = self.recompute is not None and updates == step
        found = self.recompute(self.setup, weights, step, micro_batch) if self.recompute and is_possible else None
        return events.Recomputed(step=step, micro_batch=micro_batch, found=found)

    def _report(self, report: effects.Report) -> None:
        show = self.remind if report.is_reminder and self.remind is not None else self.say
        show(report.text)

    def _in_memory(self, peer: bytes, lease: Lease) -> Lease:
        """Return a lease that names the memory in which its weights are, if its worker shares that."""
        member = self.coordinator.membership.members.get(peer)
        if member is None or not member.shares or self.sharing is None:
            return lease
        self.group.own.settle(member.rank, lease.slot)
        generation = self.sharing.generation
        return msgspec.structs.replace(lease, memory=generation) if generation else lease

    def _send(self, peer: bytes, message: Message, *arrays: Vector) -> Sequence[events.PeerLeft]:
        """Send a message; return that the worker has left if it cannot be sent to."""
        if isinstance(message, Lease):
            message = self._in_memory(peer, message)
        frames = encode(message, arrays)
        failed = deliver(self.port, peer, frames)
        if not failed:
            self.traffic.record_sent(message, frames)
        return failed
