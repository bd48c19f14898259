"""Why a worker is turned away. Pure."""

from common.messages import PROTOCOL_VERSION, Join
from common.numerics import Fingerprint


def refusal(join: Join, ours: Fingerprint, *, allows_mixed_numerics: bool) -> str:
    """Return the reason to refuse a worker with this join, empty where there is none."""
    if join.protocol != PROTOCOL_VERSION:
        return (
            f"the worker speaks protocol {join.protocol}, the server {PROTOCOL_VERSION}: "
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
