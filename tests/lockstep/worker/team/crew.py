"""The processes of a team, all in this one, each of which does one thing after the other in the order that is asked."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from lockstep.common.aggregation.layout import gather, layout_of
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.job.job import Job
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.protocol.messages import Work
from lockstep.common.protocol.shared_files import WEIGHTS, weights_shape
from lockstep.common.protocol.team_memory import ROWS, TeamShape
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.transport.shared_memory.folder import SharedFolder
from lockstep.worker.compute import Compute
from lockstep.worker.team.leader import Leader
from lockstep.worker.team.member import Outcome, TeamMember
from lockstep.worker.team.memory import TeamMemory
from lockstep.worker.team.order import Order
from lockstep.worker.team.progress import PATIENT, Patience
from tests.lockstep.common.model.built import build_model
from tests.simulation.small import digits


class Silent:
    """Bells that nobody hears: whoever is asked to act looks by itself."""

    def ring(self, process: int) -> None:
        """Do nothing."""


@dataclass
class Crew:
    """A team that shares no memory with a server."""

    job: Job
    members: list[TeamMember]
    clock: ManualClock
    folder: SharedFolder
    leader: Leader = field(init=False)

    @classmethod
    def of(cls, job: Job, processes: int, root: Path, patience: Patience = PATIENT) -> "Crew":
        """Return a team of so many processes with the first weights of a job, in a folder below `root`."""
        clock, folder, members = ManualClock(), SharedFolder.create(root), list[TeamMember]()
        model = build_model(job.model).initialize(job.seed)
        layout = layout_of(model)
        shape = TeamShape(
            processes=processes,
            micro_batches=job.micro_batches,
            size=layout.size,
            clips=job.clip_norm is not None,
        )
        first, second = folder.make(WEIGHTS, weights_shape(layout.size)).vectors
        first[:] = second[:] = gather(model, layout)
        for process in range(processes):
            memory = TeamMemory.join(folder, shape, process) if process else TeamMemory.make(folder, shape)
            compute = Compute(
                job,
                AutogradModel(build_model(job.model).initialize(job.seed)),
                digits(),
                (first, second),
                memory.own.vectors[:ROWS],
            )
            member = TeamMember(compute, memory, clock, Silent(), patience, None, first_row=0)
            member.show_ready()
            members.append(member)
        return cls(job, members, clock, folder)

    def __post_init__(self) -> None:
        self.leader = Leader(self.members[0], None)
