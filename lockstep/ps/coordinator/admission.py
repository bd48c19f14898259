"""Admits workers to a run, or refuses them with a reason. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from lockstep.common.errors import RefusalKind
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.messages import PROTOCOL_VERSION, Join, Ready, Refused, Spare, shortened
from lockstep.common.protocol.shard_messages import ShardJoin
from lockstep.common.runtime.notice import warning
from lockstep.common.statemachine.machine import Received, ReportKind
from lockstep.ps.coordinator.effects import Effect, ForgetWorker, Report, Send
from lockstep.ps.coordinator.membership import Member, Membership, MemberState, identity_of
from lockstep.ps.records.ledger import Account, WorkerIn
from lockstep.ps.run.info import RunInfo

#: Fields of a fingerprint that are the same wherever the same versions are installed. Other versions may compute alike,
#: and are refused because that is not known.
VERSIONS = ("lockstep", "code", "contract", "numpy", "blas")


def refused(kind: RefusalKind, reason: str) -> Refused:
    """Return what a worker or shard is sent that may not join."""
    return Refused(reason=shortened(reason), kind=kind)


def refusal(join: Join | ShardJoin, info: RunInfo) -> Refused | None:
    """Return why to refuse a worker or a shard of another version, or with other numerics."""
    who, ours = "worker" if isinstance(join, Join) else "shard", info.fingerprint
    if join.protocol != PROTOCOL_VERSION:
        return refused(
            RefusalKind.VERSION,
            f"the {who} speaks protocol {join.protocol}, the server {PROTOCOL_VERSION}: "
            "install the same version of lockstep on both",
        )
    # The numerics of the run, and the engine of its model, are known after the welcome only: a worker takes these, and
    # compares the other with the welcome.
    same = {"mode": ours.mode, "engine": ours.engine, "evidence": ours.evidence}
    differences = ours.differences(msgspec.structs.replace(join.fingerprint, **same))
    if not differences or info.options.allow_mixed_numerics:
        return None
    is_version = any(name in VERSIONS for name, _, _ in differences)
    if ours.mode == "portable" and not join.fingerprint.kernels and not is_version:
        return refused(
            RefusalKind.NUMERICS,
            f"host {join.host!r} has no kernels for the portable numerics of this run: `lockstep doctor --report` "
            "there shows why; or begin the run with --set numerics=native, on machines of one kind",
        )
    named = "; ".join(f"{name} {here!r} at the server, {there!r} there" for name, here, there in differences)
    equal = "versions," if ours.mode == "portable" else "machines and versions, or a job with --set numerics=portable,"
    return refused(
        RefusalKind.VERSION if is_version else RefusalKind.NUMERICS,
        f"the numerics of host {join.host!r} differ from the server's, and so would its bits: {named}: "
        f"use equal {equal} or start the server with --allow-mixed-numerics and give up equal bits",
    )


def convicted_text(why: str) -> str:
    """Return why a worker may not come back."""
    return f"{why}; test the memory and the processor of its machine"


@dataclass
class Admission:
    """Decides which workers take part, and tells them what they must know."""

    info: RunInfo
    membership: Membership
    #: By identity, which workers may not come back, and why.
    convicted: Mapping[str, str]
    #: Addresses of the other servers once they are ready.
    shards: Sequence[str] = ()
    #: By connection, the requests of workers that came before all servers were ready.
    early: dict[bytes, Received] = field(default_factory=dict)

    def refuse(self, event: Received, join: Join) -> list[Effect]:
        """Return what refuses a worker; nothing if it may join."""
        why = self._refusal(event, join)
        if why is None:
            return []
        return [
            Send(peer=event.peer, message=why),
            Report(text=f"refused a worker: {why.reason}", kind=ReportKind.REFUSAL),
        ]

    def _refusal(self, event: Received, join: Join) -> Refused | None:
        info = self.info
        if (conviction := self.convicted.get(identity_of(join, event.key))) is not None:
            return refused(RefusalKind.CONVICTED, convicted_text(conviction))
        if join.run not in ("", info.run):
            reason = f"a worker of host {join.host!r} asks for run {join.run!r}: this is run {info.run!r}"
            return refused(RefusalKind.OTHER_RUN, reason)
        if (why := refusal(join, info)) is not None:
            return why
        twin = self.membership.by_incarnation(join.incarnation)
        # One that has said nothing since may have dialled again, before its welcome came: see `Coordinator.join`.
        if twin is not None and twin.peer != event.peer and twin.state is not MemberState.PREPARING:
            reason = f"incarnation {join.incarnation!r} is {twin.named()} already: start a new worker"
            return refused(RefusalKind.DUPLICATE, reason)
        return None

    def wait(self, event: Received) -> None:
        """Let a worker wait until all servers are ready."""
        self.early[event.peer] = event

    def open(self, shards: Sequence[str]) -> list[Received]:
        """Record that all servers are ready; return the requests that have waited for that."""
        self.shards = shards
        early, self.early = self.early, {}
        return [*early.values()]

    def admit(self, event: Received, join: Join, account: Account, now: float) -> list[Effect]:
        """Give a worker a rank."""
        member = self.membership.admit(event.peer, join, now, event.key)
        entry = WorkerIn(
            rank=member.rank,
            host=join.host,
            pid=join.pid,
            processes=join.processes,
            identity=member.identity,
        )
        account.add(entry)
        welcome = self.info.welcome(member.rank, shards=self.shards)
        return [Send(peer=event.peer, message=welcome), Report(text=f"{member.named()} joined")]

    def prepared(self, member: Member, ready: Ready) -> list[Effect]:
        """Activate a member that has the model and the data, or refuse it if it has to share memory and does not."""
        membership, shares, obstacle = self.membership, bool(ready.nonce), one_line(ready.obstacle)
        if self.info.needs_memory and not shares:
            membership.remove(member.peer)
            reason = f"it does not share the server's memory: {obstacle}"
            why = Send(peer=member.peer, message=refused(RefusalKind.MEMORY, reason))
            return [why, Report(text=f"refused {member.named()}: {reason}"), ForgetWorker(rank=member.rank)]
        member.has_team = ready.makers > 0
        membership.sharing.add(shares)
        membership.obstacle = membership.obstacle or obstacle
        through_socket = f"{member.named()} exchanges gradients and weights through its socket: {obstacle}"
        crowding = membership.notice_crowding(member)
        texts = [*[through_socket] * bool(obstacle), *[warning(crowding)] * bool(crowding)]
        return [*(Report(text=text) for text in texts), *self.activate(member)]

    def activate(self, member: Member) -> list[Effect]:
        """Let a member have work, or make it a spare if all work has its workers."""
        capacity = self.info.job.micro_batches
        if self.membership.activate(member, capacity):
            return []
        reason = f"{capacity} micro-batches keep {capacity} workers busy: waiting to replace one that leaves"
        spare = Spare(reason=reason)
        return [Send(peer=member.peer, message=spare), Report(text=f"{member.named()} is a spare: {reason}")]

    def activate_spares(self) -> list[Effect]:
        """Let spares replace members that left."""
        activated = self.membership.activate_spares(self.info.job.micro_batches)
        return [Report(text=f"{member.named()} is no longer a spare") for member in activated]
