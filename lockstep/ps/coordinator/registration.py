"""How workers join a run and get work, and why some are refused. Pure."""

from collections.abc import Callable

import msgspec

from lockstep.common.errors import RefusalKind
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.fingerprint import Fingerprint
from lockstep.common.protocol.messages import PROTOCOL_VERSION, Join, Ready, Refused, Standby, Term, Welcome, shortened
from lockstep.common.protocol.shard_messages import ShardJoin
from lockstep.common.runtime.numerics import Numerics
from lockstep.ps.coordinator.effects import Effect, ForgetWorker, Report, ReportRefusal, Send
from lockstep.ps.coordinator.membership import Member, Membership, MemberState
from lockstep.ps.records.ledger import Account, WorkerIn, WorkerOut
from lockstep.ps.run.info import RunInfo

#: Fields of a fingerprint that are the same wherever the same versions are installed. Other versions may compute alike,
#: and are refused since nobody knows it.
VERSIONS = ("lockstep", "code", "numpy", "blas")


def refused(kind: RefusalKind, reason: str, numerics: Numerics | None = None) -> Refused:
    """Return what a worker or shard is sent that may not join; `numerics` are those with which it might."""
    return Refused(reason=shortened(reason), kind=kind, numerics=numerics)


def without_memory(peer: bytes, named: str, obstacle: str) -> list[Send | Report]:
    """Refuse a worker or shard that has to share memory, and does not."""
    reason = f"it does not share the server's memory: {obstacle}"
    return [
        Send(peer=peer, message=refused(RefusalKind.MEMORY, reason)),
        Report(text=f"refused {named}: {reason}"),
    ]


def through_its_socket(named: str, obstacle: str) -> list[Report]:
    """Report that a worker or shard does not share memory that it was offered, and why."""
    text = f"{named} exchanges gradients and weights through its socket: {obstacle}"
    return [Report(text=text)] if obstacle else []


def refusal(join: Join | ShardJoin, ours: Fingerprint, *, allows_mixed_numerics: bool) -> Refused | None:
    """Return why to refuse a worker or a shard of another version or with other numerics, None if it has ours."""
    who = "worker" if isinstance(join, Join) else "shard"
    if join.protocol != PROTOCOL_VERSION:
        return refused(
            RefusalKind.VERSION,
            f"the {who} speaks protocol {join.protocol}, the server {PROTOCOL_VERSION}: "
            "install the same version of lockstep on both",
        )
    # Who computes the job's model is known after the welcome only: a worker compares it with what that says.
    theirs = msgspec.structs.replace(join.fingerprint, engine=ours.engine, evidence=ours.evidence)
    differences = ours.differences(theirs)
    if not differences or allows_mixed_numerics:
        return None
    is_version = any(name in VERSIONS for name, _, _ in differences)
    if join.fingerprint.mode != ours.mode and not is_version:
        # The rest follows from it.
        return refused(
            RefusalKind.NUMERICS,
            f"host {join.host!r} computes with {join.fingerprint.mode} numerics, and this run with {ours.mode} ones: "
            f"start the {who} without --numerics, or with --numerics {ours.mode}",
            ours.mode,
        )
    named = "; ".join(f"{name} {here!r} at the server, {there!r} there" for name, here, there in differences)
    advice = "" if ours.mode == "portable" else " or a job with --numerics portable,"
    return refused(
        RefusalKind.VERSION if is_version else RefusalKind.NUMERICS,
        f"the numerics of host {join.host!r} differ from the server's, and so would its bits: {named}: "
        f"use equal machines and versions,{advice} or start the server with --allow-mixed-numerics and give up equal "
        "bits",
    )


def superseded_text(theirs: Term, info: RunInfo) -> str:
    """Return that another server leads the run."""
    return f"another server leads run {info.run} in term {theirs.number}, and this one in term {info.term.number}"


def _refusal(peer: bytes, join: Join, membership: Membership, info: RunInfo) -> Refused | None:
    if join.run not in ("", info.run):
        reason = f"a worker of host {join.host!r} asks for run {join.run!r}: this is run {info.run!r}"
        return refused(RefusalKind.OTHER_RUN, reason)
    if join.term.is_above(info.term):
        return refused(RefusalKind.OLD_TERM, superseded_text(join.term, info))
    twin = membership.by_incarnation(join.incarnation)
    # One that has said nothing since may have dialled again, before its welcome came: see `admit`.
    if twin is not None and twin.peer != peer and twin.state is not MemberState.PREPARING:
        reason = f"incarnation {join.incarnation!r} is {twin.named()} already: start a new worker"
        return refused(RefusalKind.DUPLICATE, reason)
    return refusal(join, info.fingerprint, allows_mixed_numerics=info.allows_mixed_numerics)


def refuse(peer: bytes, join: Join, membership: Membership, info: RunInfo) -> list[Effect]:
    """Return what refuses a worker; nothing if it may join."""
    why = _refusal(peer, join, membership, info)
    if why is None:
        return []
    return [Send(peer=peer, message=why), ReportRefusal(text=f"refused a worker: {why.reason}")]


def admit(
    peer: bytes,
    join: Join,
    membership: Membership,
    account: Account,
    welcome: Callable[[int], Welcome],
    now: float,
) -> list[Effect]:
    """Give a worker a rank, and drop its previous connection: the welcome may have been lost with that.

    `welcome` makes the welcome of a rank.
    """
    effects: list[Effect] = []
    if (twin := membership.by_incarnation(join.incarnation)) is not None:
        membership.remove(twin.peer)
        account.add(WorkerOut(rank=twin.rank, why="it connected again"))
        effects += [
            Report(text=f"{twin.named()} left: it connected again"),
            ForgetWorker(peer=twin.peer, rank=twin.rank),
        ]
    member = membership.admit(peer, join, now)
    account.add(WorkerIn(rank=member.rank, host=join.host, pid=join.pid, processes=join.processes))
    send = Send(peer=peer, message=welcome(member.rank))
    return [*effects, send, Report(text=f"{member.named()} joined")]


def prepared(member: Member, ready: Ready, membership: Membership, info: RunInfo) -> list[Effect]:
    """Activate a member that has the model and the data, or refuse it if it has to share memory and does not."""
    shares, obstacle = bool(ready.nonce), one_line(ready.obstacle)
    if info.needs_memory and not shares:
        membership.remove(member.peer)
        forget = ForgetWorker(peer=member.peer, rank=member.rank)
        return [*without_memory(member.peer, member.named(), obstacle), forget]
    member.shares, member.has_team = shares, ready.makers > 0
    membership.sharing.add(shares)
    membership.obstacle = membership.obstacle or obstacle
    return [*through_its_socket(member.named(), obstacle), *activate(member, membership, info)]


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
