"""Builds the server of a run whole, with the features that the run has. Each of them is one line here."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from functools import partial

from lockstep.common.aggregation.slices import slices_for
from lockstep.common.aggregation.tree import Vector
from lockstep.common.runtime.clock import Clock
from lockstep.common.statemachine.machine import Report, ReportKind
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.port import ServerPort
from lockstep.ps.checkpoint.checkpointer import Checkpointer
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.findings import MicroBatchOutcome
from lockstep.ps.coordinator.parts.assembly import part_of
from lockstep.ps.coordinator.parts.audit import Audit
from lockstep.ps.coordinator.parts.multi_step import MultiStep
from lockstep.ps.coordinator.scheduling.round_state import WINDOW
from lockstep.ps.run.progress import Traffic
from lockstep.ps.server.inbox import ServerInbox
from lockstep.ps.server.limits import PeerBlocklist, StatusAnswers
from lockstep.ps.server.room import RoomWatch
from lockstep.ps.server.samples import SampleSender
from lockstep.ps.server.server import Server
from lockstep.ps.server.shared_memory import ServerSharedMemory
from lockstep.ps.server.step_committer import StepCommitter
from lockstep.ps.server.workers import WorkerMessages
from lockstep.ps.setup import RunSetup
from lockstep.ps.shard.outbox import Outbox
from lockstep.ps.shard.partition import own_part
from lockstep.ps.shard.service import SliceService
from lockstep.ps.shard_group.group import SliceGroup

#: Messages without arrays that may wait for a worker. In addition it may have the weights for a window of leases: a
#: worker that does not read costs no more memory than that.
QUEUE = 16


@dataclass(frozen=True)
class ServerContext:
    """The surroundings of a server: how it is reached, and where it shows what happens."""

    port: ServerPort
    clock: Clock
    say: Callable[[str], None]
    _: KW_ONLY
    #: Shows what the run still waits for; by default `say` does.
    remind: Callable[[str], None] | None = None
    #: The memory that workers and shards on this machine share, if there is any.
    sharing: ServerSharedMemory | None = None
    #: Connections that were not let in.
    rejections: RejectionLog = field(default_factory=RejectionLog)
    #: Returns what an honest worker finds for a micro-batch, given the weights and the step.
    recompute: Callable[[RunSetup, Vector, int, int], MicroBatchOutcome | None] | None = None

    def report(self, blocklist: PeerBlocklist, report: Report) -> None:
        """Show a report of the run."""
        if report.kind is ReportKind.REFUSAL:
            blocklist.report_refusal(report.text)
        elif report.kind is ReportKind.REMINDER and self.remind is not None:
            self.remind(report.text)
        else:
            self.say(report.text)


def build_server(
    coordinator: Coordinator,
    setup: RunSetup,
    checkpointer: Checkpointer,
    context: ServerContext,
) -> Server:
    """Build the server of a run; the memory of the setup's shard may be the one that workers share."""
    info, membership, port = coordinator.info, coordinator.membership, context.port
    outbox = Outbox(port, Traffic())
    blocklist = PeerBlocklist(port, context.clock, context.say, context.rejections)
    group = _slices(coordinator, setup, outbox, blocklist, context)
    committer = StepCommitter(coordinator, group, checkpointer, context.say, outbox.traffic, context.sharing)
    workers = WorkerMessages(info, membership, group, outbox, context.sharing)
    part_of(coordinator, MultiStep).serve(committer)
    part_of(coordinator, Audit).serve(partial(_recompute, context, setup, group))
    samples = SampleSender(setup.data, info.manifest, membership, outbox)
    status = StatusAnswers(coordinator, outbox, blocklist, context.clock)
    room = RoomWatch(coordinator, checkpointer.run.room, committer.write_again, context.say)
    # Now that the model is known, and before any worker takes part.
    port.make_room(max(QUEUE + WINDOW * len(group.own.shard.frames), group.most_waiting()))
    return Server(
        coordinator,
        ServerInbox(outbox, blocklist, (group,), (samples, status, workers)),
        outbox,
        (status, room, group, coordinator),
        workers=workers,
        group=group,
        committer=committer,
        report=partial(context.report, blocklist),
    )


def _slices(
    coordinator: Coordinator, setup: RunSetup, outbox: Outbox, blocklist: PeerBlocklist, context: ServerContext
) -> SliceGroup:
    info, whole = coordinator.info, setup.shard
    servers = info.options.servers
    own = whole if servers == 1 else own_part(whole, slices_for(whole.weights.size, servers)[0])
    return SliceGroup(
        info,
        whole,
        SliceService(own, outbox, lambda rank, node: coordinator.state.was_leased(rank, node)),
        coordinator.membership,
        clock=context.clock,
        report=partial(context.report, blocklist),
    )


def _recompute(
    context: ServerContext, setup: RunSetup, group: SliceGroup, step: int, micro_batch: int
) -> MicroBatchOutcome | None:
    """Compute a micro-batch in this process; with several servers, of which one may not answer, that may be impossible.

    Afterwards this part of the run ends, whatever was found: what other servers send meanwhile is lost.
    """
    weights, updates = group.final_weights(is_diverged=False)
    if context.recompute is None or updates != step:
        return None
    return context.recompute(setup, weights, step, micro_batch)
