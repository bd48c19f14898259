"""Why a worker or a shard is turned away. Pure."""

from common.messages import PROTOCOL_VERSION, Join
from common.numerics import Fingerprint
from common.shard_messages import ShardJoin
from ps.facts import RunFacts
from ps.roster import Roster


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


def why_not(join: Join, peer: bytes, roster: Roster, facts: RunFacts) -> str:
    """Return the reason to refuse a worker of a run, empty where there is none."""
    twin = roster.incarnation_of(join.incarnation)
    if twin is not None and twin.peer != peer:
        return f"incarnation {join.incarnation!r} is {twin.named()} already: start a new worker"
    return refusal(join, facts.fingerprint, allows_mixed_numerics=facts.allows_mixed_numerics)
