"""Why a worker or a shard is turned away. Pure."""

from typing import Literal

from common.protocol.messages import PROTOCOL_VERSION, Join
from common.protocol.numerics import Fingerprint
from common.protocol.shard_messages import ShardJoin
from ps.coordinator.membership import Membership, MemberState
from ps.run.info import RunInfo

#: Fields of a fingerprint that are the same wherever the same versions are installed.
VERSIONS = ("lockstep", "code", "numpy", "blas")


def refusal(join: Join | ShardJoin, ours: Fingerprint, *, allows_mixed_numerics: bool) -> str:
    """Return the reason to refuse whoever joins with this, empty where there is none."""
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
    """Return what a reason to refuse is about: other code, other arithmetic, or something else.

    For who is told the reason alone; it stands here since it has to know the words of `refusal`.
    """
    if "protocol" in reason.partition(":")[0]:
        return "version"
    if not reason.startswith("the numerics of host "):
        return ""
    # Other versions may compute alike, and are refused since nobody knows it.
    return "version" if any(f" {name} '" in reason for name in VERSIONS) else "numerics"


def is_of_another_run(join: Join, facts: RunInfo) -> bool:
    """Tell whether a worker asks to be taken back into a run that is not this one, as an old word said again does."""
    return join.run not in ("", facts.run)


def why_not(join: Join, peer: bytes, roster: Membership, facts: RunInfo) -> str:
    """Return the reason to refuse a worker of a run, empty where there is none."""
    if is_of_another_run(join, facts):
        return f"a worker of host {join.host!r} asks for run {join.run!r}: this is run {facts.run!r}"
    twin = roster.incarnation_of(join.incarnation)
    # One that has not said a word since may have dialled again, before its welcome came: see `Reception.admit`.
    if twin is not None and twin.peer != peer and twin.standing is not MemberState.PREPARING:
        return f"incarnation {join.incarnation!r} is {twin.named()} already: start a new worker"
    return refusal(join, facts.fingerprint, allows_mixed_numerics=facts.allows_mixed_numerics)
