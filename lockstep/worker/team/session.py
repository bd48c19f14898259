"""Shares memory among the processes of a team: the leader makes it for the run that it joins, others map it."""

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec

from lockstep.common.aggregation.slices import Slice, frames_of
from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import SharingError
from lockstep.common.protocol.messages import Welcome
from lockstep.common.protocol.team_memory import ROWS, WEIGHTS, TeamShape, file_of, process_shape, weights_shape
from lockstep.common.runtime.clock import ThreadClock
from lockstep.common.runtime.notice import warning
from lockstep.common.transport.shared_memory.folder import SharedFolder, shared_root
from lockstep.worker.compute import Compute, Slots
from lockstep.worker.setup import LoadedRun
from lockstep.worker.team.division import plan_for
from lockstep.worker.team.meeting import Meeting, Session, announce
from lockstep.worker.team.member import TeamMember
from lockstep.worker.team.memory import RESULT, TeamMemory
from lockstep.worker.team.pace import Pace, Waking
from lockstep.worker.team.progress import PATIENT, Patience
from lockstep.worker.team.updates import SharedPlace


class TeamContext(msgspec.Struct, frozen=True, kw_only=True):
    """The clock, folders and meeting place of one process of a team."""

    clock: ThreadClock
    say: Callable[[str], None]
    #: How long it waits for the other processes.
    patience: Patience = PATIENT
    #: The folder for the server's memory, None if it is not to be shared; and those for a team's memory, best first.
    root: Path | None = None
    roots: tuple[Path, ...] = msgspec.field(default_factory=lambda: default_roots())
    #: The meeting place of the processes, None if there is only one process.
    meeting: Meeting | None = None
    #: The class of its part in the team.
    kind: type[TeamMember] = TeamMember

    @property
    def processes(self) -> int:
        """The number of processes of the team."""
        return 1 if self.meeting is None else self.meeting.processes

    def member(
        self,
        loaded: LoadedRun,
        memory: TeamMemory,
        slots: Slots,
        place: SharedPlace | None,
        frames: Sequence[Slice] = (),
        session: int = 1,
    ) -> TeamMember:
        """Return the part of this process in a team; `SharingError` if there is no memory for its sums."""
        memory.own.reserve(0)
        memory.own.reserve(RESULT)
        compute = loaded.compute(slots, memory.own.vectors[:ROWS], frames)
        pace = Pace(memory, self.clock, self.patience, session)
        return self.kind(compute, memory, self.clock, pace, Waking(memory, self.meeting), place)


class LeaderSetup(msgspec.Struct, frozen=True, kw_only=True):
    """The engine of the leader, and its share of the memory."""

    compute: Compute
    #: The server's memory, None if it is not shared; and why it is not, if it was offered.
    shared: SharedPlace | None = None
    obstacle: str = ""
    #: The team, with the folder of its memory; None for one process that shares no memory.
    member: TeamMember | None = None
    folder: SharedFolder | None = None

    def close(self) -> None:
        """Let go of all memory."""
        if self.member is not None:
            self.member.close()
        if self.folder is not None:
            self.folder.remove()


def lead(welcome: Welcome, loaded: LoadedRun, context: TeamContext) -> LeaderSetup:
    """Return what the leader of a team computes with, after the others were told."""
    size, shared, obstacle = loaded.model.layout.size, None, ""
    if welcome.memory and context.root is not None:
        try:
            shared = SharedPlace.attach(context.root, welcome, size)
        except SharingError as error:
            obstacle = str(error)
    frames = frames_of(size, 1 + len(welcome.shards))
    slots: Slots = () if shared is None else shared.slots
    if shared is None and context.processes == 1:
        compute = loaded.compute(slots, (), frames)
        _prove(compute, loaded, context)
        return LeaderSetup(compute=compute, obstacle=obstacle)
    shape = shape_of(welcome, context.processes, size, context.patience.cores)
    try:
        folder, memory, own_slots = _make(context, shape, has_weights=shared is None)
    except SharingError as error:
        if context.processes > 1:
            context.say(warning(f"only one of {context.processes} processes computes: {error}"))
        return LeaderSetup(compute=loaded.compute(slots, (), frames), shared=shared, obstacle=obstacle)
    with ExitStack() as stack:
        stack.callback(folder.remove)
        stack.callback(memory.close)
        member = context.member(loaded, memory, slots or own_slots, shared, frames)
        if context.meeting is not None:
            path, root = str(folder.path), "" if shared is None else str(shared.root)
            session = Session(welcome=welcome, folder=path, shared_root=root, makers=shape.makers)
            member.pace.session = announce(context.meeting, session)
        _prove(member.compute, loaded, context)  # while the others do so too
        member.pace.show_ready()
        stack.pop_all()
    return LeaderSetup(compute=member.compute, shared=shared, obstacle=obstacle, member=member, folder=folder)


def _prove(compute: Compute, loaded: LoadedRun, context: TeamContext) -> None:
    """Prove what computes the part of a step that one of equally fast processes has, before the run waits for it."""
    if loaded.store is None:  # otherwise its samples may not have come
        count = min(context.processes, context.patience.cores)
        plan = plan_for(Node(0, loaded.job.micro_batches), dict.fromkeys(range(count), 1.0))
        compute.prove(plan.parts[0].node)


def shape_of(welcome: Welcome, processes: int, size: int, makers: int) -> TeamShape:
    """Return the shape of a team's memory in a run."""
    job = welcome.job
    return TeamShape(
        processes=processes,
        micro_batches=job.micro_batches,
        size=size,
        clips=job.clip_norm is not None,
        metrics=welcome.metric_sums,
        makers=makers,
    )


def _make(context: TeamContext, shape: TeamShape, *, has_weights: bool) -> tuple[SharedFolder, TeamMemory, Slots]:
    """Make the memory of a team where there is room; `SharingError` if no place has any."""
    obstacle = ""
    for root in context.roots:
        try:
            _check_room(root, shape)
            folder = SharedFolder.create(root)
        except SharingError as error:
            obstacle = obstacle or str(error)
            continue
        try:
            first, second = folder.make(WEIGHTS, weights_shape(shape.size)).vectors if has_weights else (None, None)
            slots: Slots = () if first is None or second is None else (first, second)
            return folder, TeamMemory.make(folder, shape), slots
        except SharingError as error:
            folder.remove()
            obstacle = obstacle or str(error)
    raise SharingError(obstacle)


def _check_room(root: Path, shape: TeamShape) -> None:
    """Raise `SharingError` if a team needs more memory than there is, for the weights and two vectors a process."""
    needed = (2 * shape.processes + 2) * process_shape(shape.size).stride + file_of(shape.of_team()).total
    try:
        space = os.statvfs(root)
    except OSError as error:
        raise SharingError(f"{root} cannot be used: {error.strerror}") from None
    free = space.f_bavail * space.f_frsize
    if free < needed:
        raise SharingError(
            f"{root} has no room for the {needed / 2**20:.0f} MiB of a team of {shape.processes} "
            f"({free / 2**20:.0f} MiB are free): make it larger (for a container, --shm-size)"
        )


def follow(session: Session, welcome: Welcome, loaded: LoadedRun, context: TeamContext, process: int) -> TeamMember:
    """Return what another process of the team computes with; `SharingError` if the team's memory is gone."""
    size, path = loaded.model.layout.size, Path(session.folder)
    with ExitStack() as stack:
        folder = stack.enter_context(closing(SharedFolder.join(path.parent, path.name)))
        memory = TeamMemory.join(folder, shape_of(welcome, context.processes, size, session.makers), process)
        opened = stack.enter_context(ExitStack())
        opened.callback(memory.close)
        shared = None
        if session.shared_root:
            shared = SharedPlace.attach(Path(session.shared_root), welcome, size)
            slots = shared.slots
        else:
            first, second = folder.attach(WEIGHTS, weights_shape(size)).vectors
            slots = first, second
        member = context.member(loaded, memory, slots, shared, session=session.number)
        member.compute.is_wanted = member.is_wanted
        _prove(member.compute, loaded, context)
        member.pace.show_ready()
        opened.pop_all()
    return member


def default_roots() -> tuple[Path, ...]:
    """Return where the memory of a team may be: files there are memory, or else on a disk."""
    return tuple(dict.fromkeys((shared_root(), Path(tempfile.gettempdir()))))
