"""Where workers come in and get a place: for the moment of one event. Pure."""

from dataclasses import dataclass

from common.errors import RefusalKind
from common.protocol.messages import Refused, Standby, shortened
from ps.coordinator import events
from ps.coordinator.admission import is_of_another_run, why_not
from ps.coordinator.effects import Effect, ForgetWorker, Report, ReportRefusal, Send
from ps.coordinator.membership import Member, Membership
from ps.records.ledger import Account, WorkerIn
from ps.run.info import RunInfo


@dataclass(frozen=True, slots=True)
class Registration:
    """The books in which a worker that comes is entered."""

    facts: RunInfo
    roster: Membership
    account: Account

    def refusal(self, event: events.WorkerJoined) -> list[Effect]:
        """Return what tells a worker that it is not taken in; nothing where it may be."""
        reason = why_not(event.join, event.peer, self.roster, self.facts)
        if not reason:
            return []
        kind = RefusalKind.OTHER_RUN if is_of_another_run(event.join, self.facts) else RefusalKind.VERSION
        refused = Refused(reason=shortened(reason), kind=kind)
        return [Send(peer=event.peer, message=refused), ReportRefusal(text=f"refused a worker: {reason}")]

    def admit(self, event: events.WorkerJoined, now: float) -> list[Effect]:
        """Give a worker a rank, and take that of its connection before: the welcome may have gone down with it."""
        superseded = self._supersede(event)
        member = self.roster.admit(event.peer, event.join, now)
        self.account.note(WorkerIn(rank=member.rank, host=member.join.host, pid=member.join.pid))
        welcome = self.facts.welcome(member.rank)
        return [*superseded, Send(peer=event.peer, message=welcome), Report(text=f"{member.named()} joined")]

    def _supersede(self, event: events.WorkerJoined) -> list[Effect]:
        twin = self.roster.incarnation_of(event.join.incarnation)
        if twin is None:
            return []
        self.roster.remove(twin.peer)
        return [Report(text=f"{twin.named()} left: it dialled again"), ForgetWorker(peer=twin.peer, rank=twin.rank)]

    def prepared(self, member: Member, event: events.WorkerPrepared) -> list[Effect]:
        """Give a place to a member that has the model and the data, or send it away where it is to share memory."""
        if self.facts.needs_memory and not event.shares:
            return self._turn_away(member, f"it does not share the server's memory: {event.obstacle}")
        member.shares = event.shares
        self.roster.sharing.add(event.shares)
        self.roster.obstacle = self.roster.obstacle or event.obstacle
        effects = self.seat(member)
        if event.obstacle:
            effects.insert(0, Report(text=f"{member.named()} exchanges vectors over its socket: {event.obstacle}"))
        return effects

    def _turn_away(self, member: Member, reason: str) -> list[Effect]:
        """Send away a worker that has not yet been given any work."""
        self.roster.remove(member.peer)
        told = Report(text=f"refused {member.named()}: {reason}")
        refused = Send(peer=member.peer, message=Refused(reason=shortened(reason), kind=RefusalKind.MEMORY))
        return [refused, told, ForgetWorker(peer=member.peer, rank=member.rank)]

    def seat(self, member: Member) -> list[Effect]:
        """Give a member a place among those that compute, or tell it that there is none."""
        places = self.facts.job.micro_batches
        if self.roster.seat(member, places):
            return []
        reason = f"{places} micro-batches keep {places} workers busy: waiting to stand in for one that goes"
        standby = Standby(reason=reason)
        return [Send(peer=member.peer, message=standby), Report(text=f"{member.named()} stands by: {reason}")]

    def fill_places(self) -> list[Effect]:
        """Let those that stand by take free places."""
        filled = self.roster.fill(self.facts.job.micro_batches)
        return [Report(text=f"{member.named()} takes the free place") for member in filled]
