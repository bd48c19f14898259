"""How workers join a run and get work, and why some are refused. Pure."""

from typing import Literal

from common.errors import RefusalKind
from common.protocol.messages import PROTOCOL_VERSION, Join, Refused, Standby, shortened
from common.protocol.numerics import Fingerprint
from common.protocol.shard_messages import ShardJoin
from ps.coordinator import events
from ps.coordinator.effects import Effect, ForgetWorker, Report, ReportRefusal, Send
from ps.coordinator.membership import Member, Membership, MemberState
from ps.records.ledger import Account, WorkerIn
from ps.run.info import RunInfo

#: Fields of a fingerprint that are the same wherever the same versions are installed.
VERSIONS = ("lockstep", "code", "numpy", "blas")


def refusal(join: Join | ShardJoin, ours: Fingerprint, *, allows_mixed_numerics: bool) -> str:
    """Return the reason to refuse a worker or a shard, empty if there is none."""
    who = "worker" if isinstance(join, Join) else "shard"
    if join.protocol != PROTOCOL_VERSION:
        return (
            f"the {who} speaks protocol {join.protocol}, the server {PROTOCOL_VERSION}: "
            "install the same version of lockstep on both"
        )
    differences = ours.differences(join.fingerprint)
    if differences and not allows_mixed_numerics:
        named = "; ".join(f"{name} {here!r} at the server, {there!r} there" for name, here, there in differences)
        return (
            f"the numerics of host {join.host!r} differ from the server's, and so would its bits: {named}: "
            "use equal machines and versions, or start the server with --allow-mixed-numerics and lose the promise"
        )
    return ""


def refused_for(reason: str) -> Literal["version", "numerics", ""]:
    """Return what a reason to refuse is about: other code, other arithmetic, or something else."""
    if "protocol" in reason.partition(":")[0]:
        return "version"
    if not reason.startswith("the numerics of host "):
        return ""
    # Other versions may compute alike, and are refused since nobody knows it.
    return "version" if any(f" {name} '" in reason for name in VERSIONS) else "numerics"


def is_of_another_run(join: Join, info: RunInfo) -> bool:
    """Tell whether a worker asks to rejoin a run that is not this one."""
    return join.run not in ("", info.run)


def _reason_to_refuse(event: events.WorkerJoined, membership: Membership, info: RunInfo) -> str:
    join = event.join
    if is_of_another_run(join, info):
        return f"a worker of host {join.host!r} asks for run {join.run!r}: this is run {info.run!r}"
    twin = membership.by_incarnation(join.incarnation)
    # One that has said nothing since may have dialled again, before its welcome came: see `admit`.
    if twin is not None and twin.peer != event.peer and twin.state is not MemberState.PREPARING:
        return f"incarnation {join.incarnation!r} is {twin.named()} already: start a new worker"
    return refusal(join, info.fingerprint, allows_mixed_numerics=info.allows_mixed_numerics)


def refuse(event: events.WorkerJoined, membership: Membership, info: RunInfo) -> list[Effect]:
    """Return what refuses a worker; nothing if it may join."""
    reason = _reason_to_refuse(event, membership, info)
    if not reason:
        return []
    kind = RefusalKind.OTHER_RUN if is_of_another_run(event.join, info) else RefusalKind.VERSION
    refused = Refused(reason=shortened(reason), kind=kind)
    return [Send(peer=event.peer, message=refused), ReportRefusal(text=f"refused a worker: {reason}")]


def admit(
    event: events.WorkerJoined, membership: Membership, info: RunInfo, account: Account, now: float
) -> list[Effect]:
    """Give a worker a rank, and drop its previous connection: the welcome may have been lost with that."""
    effects: list[Effect] = []
    if (twin := membership.by_incarnation(event.join.incarnation)) is not None:
        membership.remove(twin.peer)
        effects += [Report(text=f"{twin.named()} left: it dialled again"), ForgetWorker(peer=twin.peer, rank=twin.rank)]
    member = membership.admit(event.peer, event.join, now)
    account.add(WorkerIn(rank=member.rank, host=member.join.host, pid=member.join.pid))
    welcome = Send(peer=event.peer, message=info.welcome(member.rank))
    return [*effects, welcome, Report(text=f"{member.named()} joined")]


def prepared(member: Member, event: events.WorkerPrepared, membership: Membership, info: RunInfo) -> list[Effect]:
    """Activate a member that has the model and the data, or refuse it if it has to share memory and does not."""
    if info.needs_memory and not event.shares:
        membership.remove(member.peer)
        reason = f"it does not share the server's memory: {event.obstacle}"
        refused = Send(peer=member.peer, message=Refused(reason=shortened(reason), kind=RefusalKind.MEMORY))
        report = Report(text=f"refused {member.named()}: {reason}")
        return [refused, report, ForgetWorker(peer=member.peer, rank=member.rank)]
    member.shares = event.shares
    membership.sharing.add(event.shares)
    membership.obstacle = membership.obstacle or event.obstacle
    effects = activate(member, membership, info)
    if event.obstacle:
        effects.insert(0, Report(text=f"{member.named()} exchanges vectors over its socket: {event.obstacle}"))
    return effects


def activate(member: Member, membership: Membership, info: RunInfo) -> list[Effect]:
    """Let a member have work, or put it on standby if all work has its workers."""
    capacity = info.job.micro_batches
    if membership.activate(member, capacity):
        return []
    reason = f"{capacity} micro-batches keep {capacity} workers busy: waiting to replace one that leaves"
    standby = Standby(reason=reason)
    return [Send(peer=member.peer, message=standby), Report(text=f"{member.named()} is on standby: {reason}")]


def activate_standby(membership: Membership, info: RunInfo) -> list[Effect]:
    """Let members on standby replace those that left."""
    activated = membership.activate_standby(info.job.micro_batches)
    return [Report(text=f"{member.named()} is no longer on standby") for member in activated]
