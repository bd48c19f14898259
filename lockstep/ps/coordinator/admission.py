"""Admits workers to a run, or refuses them with a reason. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from lockstep.common.errors import RefusalKind
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.fingerprint import Fingerprint
from lockstep.common.protocol.messages import (
    NO_TERM,
    PROTOCOL_VERSION,
    Join,
    NotLeading,
    Ready,
    Refused,
    Standby,
    StandbyAddress,
    Term,
    Welcome,
    shortened,
)
from lockstep.common.protocol.shard_messages import ShardJoin
from lockstep.common.runtime.notice import warning
from lockstep.common.statemachine.machine import ReportKind
from lockstep.ps.coordinator.effects import Effect, ForgetWorker, Report, Send
from lockstep.ps.coordinator.membership import Member, Membership, MemberState, identity_of
from lockstep.ps.records.ledger import Account, WorkerIn, WorkerOut
from lockstep.ps.run.info import RunInfo

#: Fields of a fingerprint that are the same wherever the same versions are installed. Other versions may compute alike,
#: and are refused because that is not known.
VERSIONS = ("lockstep", "code", "contract", "numpy", "blas")


def refused(kind: RefusalKind, reason: str) -> Refused:
    """Return what a worker or shard is sent that may not join."""
    return Refused(reason=shortened(reason), kind=kind)


def without_memory(peer: bytes, named: str, obstacle: str) -> list[Send | Report]:
    """Refuse a worker that has to share memory, and does not."""
    reason = f"it does not share the server's memory: {obstacle}"
    return [
        Send(peer=peer, message=refused(RefusalKind.MEMORY, reason)),
        Report(text=f"refused {named}: {reason}"),
    ]


def through_its_socket(named: str, obstacle: str) -> list[Report]:
    """Report that a worker does not share memory that it was offered, and why."""
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
    # The numerics of the run, and the engine of its model, are known after the welcome only: a worker takes these, and
    # compares the other with the welcome.
    same = {"mode": ours.mode, "engine": ours.engine, "evidence": ours.evidence}
    differences = ours.differences(msgspec.structs.replace(join.fingerprint, **same))
    if not differences or allows_mixed_numerics:
        return None
    is_version = any(name in VERSIONS for name, _, _ in differences)
    if ours.mode == "portable" and not join.fingerprint.kernels and not is_version:
        return refused(
            RefusalKind.NUMERICS,
            f"host {join.host!r} has no kernels for the portable numerics of this run: `lockstep doctor` there reports "
            "why; or begin the run with --numerics native, on machines of one kind",
        )
    named = "; ".join(f"{name} {here!r} at the server, {there!r} there" for name, here, there in differences)
    equal = "versions," if ours.mode == "portable" else "machines and versions, or a job with --numerics portable,"
    return refused(
        RefusalKind.VERSION if is_version else RefusalKind.NUMERICS,
        f"the numerics of host {join.host!r} differ from the server's, and so would its bits: {named}: "
        f"use equal {equal} or start the server with --allow-mixed-numerics and give up equal bits",
    )


def superseded_text(theirs: Term, info: RunInfo) -> str:
    """Return that another server leads the run."""
    if theirs.run != info.term.run:
        return f"another server leads run {info.run}, which was begun again, and neither has made a step"
    return f"another server leads run {info.run} in term {theirs.number}, and this one in term {info.term.number}"


def convicted_text(why: str) -> str:
    """Return why a worker may not come back."""
    return f"{why}; test the memory and the processor of its machine"


class Admittance(NamedTuple):
    """The name of the key with which a peer was let in, and the key of its signatures, as the server knows them."""

    key: str = ""
    signer: str = ""


def unsigned_text(join: Join, signer: str) -> str:
    """Return why results of a worker could not be checked: it has no key for signatures, or another one."""
    if not join.signer:
        return (
            "this run accepts signed results only: expected a worker with --key FILE, whose file has a seed; with the "
            "extra signing, `lockstep keys add DIR NAME` makes one"
        )
    known = f"{signer[:12]}…" if signer else "none"
    return (
        f"this run accepts signed results only, and knows {known} as the key of this worker's signatures, which is "
        f"{join.signer[:12]}…: expected the key that the server's list names; see `lockstep keys list DIR`"
    )


@dataclass
class Admission:
    """Decides which workers take part, and tells them what they must know."""

    info: RunInfo
    membership: Membership
    #: By identity, which workers may not come back, and why.
    convicted: Mapping[str, str]
    #: Addresses of the other servers once they are ready.
    shards: Sequence[str] = ()
    #: The servers that workers ask if this one is gone.
    standbys: tuple[StandbyAddress, ...] = ()
    #: Workers that came before all servers were ready, and how they were let in.
    early: dict[bytes, tuple[Join, Admittance]] = field(default_factory=dict)

    def refuse(self, peer: bytes, join: Join, admitted: Admittance) -> list[Effect]:
        """Return what refuses a worker; nothing if it may join."""
        why = self._refusal(peer, join, admitted)
        if why is None:
            return []
        return [Send(peer=peer, message=why), Report(text=f"refused a worker: {why.reason}", kind=ReportKind.REFUSAL)]

    def _refusal(self, peer: bytes, join: Join, admitted: Admittance) -> Refused | None:
        info = self.info
        if (conviction := self.convicted.get(identity_of(join, admitted.key))) is not None:
            return refused(RefusalKind.CONVICTED, convicted_text(conviction))
        if info.options.signed and not (admitted.signer and join.signer == admitted.signer):
            return refused(RefusalKind.UNSIGNED, unsigned_text(join, admitted.signer))
        if join.run not in ("", info.run):
            reason = f"a worker of host {join.host!r} asks for run {join.run!r}: this is run {info.run!r}"
            return refused(RefusalKind.OTHER_RUN, reason)
        if join.term.is_above(info.term):
            return refused(RefusalKind.OLD_TERM, superseded_text(join.term, info))
        twin = self.membership.by_incarnation(join.incarnation)
        # One that has said nothing since may have dialled again, before its welcome came: see `admit`.
        if twin is not None and twin.peer != peer and twin.state is not MemberState.PREPARING:
            reason = f"incarnation {join.incarnation!r} is {twin.named()} already: start a new worker"
            return refused(RefusalKind.DUPLICATE, reason)
        return refusal(join, info.fingerprint, allows_mixed_numerics=info.options.allow_mixed_numerics)

    def wait(self, peer: bytes, join: Join, admitted: Admittance) -> list[Effect]:
        """Let a worker wait until all servers are ready."""
        self.early[peer] = join, admitted
        if not self.standbys and join.term == NO_TERM:
            return []
        # It would look elsewhere.
        waiting = NotLeading(state="opening", reason="the server waits for its shards")
        return [Send(peer=peer, message=waiting)]

    def open(self, shards: Sequence[str]) -> dict[bytes, tuple[Join, Admittance]]:
        """Record that all servers are ready; return the workers that have waited for that."""
        self.shards = shards
        early, self.early = self.early, {}
        return early

    def admit(self, peer: bytes, join: Join, admitted: Admittance, account: Account, now: float) -> list[Effect]:
        """Give a worker a rank, and drop its previous connection: the welcome may have been lost with that."""
        effects: list[Effect] = []
        if (twin := self.membership.by_incarnation(join.incarnation)) is not None:
            self.membership.remove(twin.peer)
            account.add(WorkerOut(rank=twin.rank, why="it connected again"))
            effects += [
                Report(text=f"{twin.named()} left: it connected again"),
                ForgetWorker(rank=twin.rank),
            ]
        member = self.membership.admit(peer, join, now, admitted.key)
        entry = WorkerIn(
            rank=member.rank,
            host=join.host,
            pid=join.pid,
            processes=join.processes,
            identity=member.identity,
            signer=admitted.signer if self.info.signed_run else "",
        )
        account.add(entry)
        return [*effects, Send(peer=peer, message=self._welcome(member.rank)), Report(text=f"{member.named()} joined")]

    def _welcome(self, rank: int) -> Welcome:
        return self.info.welcome(rank, shards=self.shards, standbys=self.standbys)


def prepared(member: Member, ready: Ready, membership: Membership, info: RunInfo) -> list[Effect]:
    """Activate a member that has the model and the data, or refuse it if it has to share memory and does not."""
    shares, obstacle = bool(ready.nonce), one_line(ready.obstacle)
    if info.needs_memory and not shares:
        membership.remove(member.peer)
        forget = ForgetWorker(rank=member.rank)
        return [*without_memory(member.peer, member.named(), obstacle), forget]
    member.shares, member.has_team = shares, ready.makers > 0
    membership.sharing.add(shares)
    membership.obstacle = membership.obstacle or obstacle
    crowding = membership.notice_crowding(member)
    reports = [Report(text=warning(crowding))] if crowding else []
    return [*through_its_socket(member.named(), obstacle), *reports, *activate(member, membership, info)]


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
