"""The weights of a run that fails, from servers that may not answer any more: what comes in time, or what was there."""

from contextlib import suppress

from common.errors import RemoteProtocolError
from common.protocol.codec import decode, encode
from common.protocol.shard_messages import Collect, CollectedFrame, ShardMessage
from common.runtime.clock import Clock
from common.transport.port import PeerGone, PeerSlow, ServerPort
from ps.shard.shard import Kept
from ps.sharding.group.shell import ShardGroupShell

#: Seconds in which the shards are to bring them.
PATIENCE_S = 1.0


def final_weights(shards: ShardGroupShell, port: ServerPort, clock: Clock, *, is_diverged: bool) -> Kept:
    """Return the weights after the last update that was made to its end, or before it where that went wrong.

    Those that were last gathered, where not all shards bring theirs in time. What else arrives meanwhile is dropped.
    """
    gathered, updates = shards.gathered, max(0, shards.fleet.step - is_diverged)
    if updates == gathered.updates:
        return gathered.weights, updates
    before = gathered.weights.copy()
    gathered.begin()
    shards.gather_near(updates, has_state=False)
    if _ask(shards, port, updates):
        deadline = clock.now() + PATIENCE_S
        while gathered.received < gathered.weights.size and clock.now() < deadline:
            received = port.receive(deadline - clock.now())
            if received is not None:
                _take(shards, updates, *received)
            elif not port.lost():
                break
    if not gathered.end(updates):
        gathered.weights[:] = before
    return gathered.weights, gathered.updates


def _ask(shards: ShardGroupShell, port: ServerPort, updates: int) -> bool:
    """Ask all whose weights we do not see for them; return whether all are there to hear it."""
    try:
        for peer in [seat.peer for seat in shards.fleet.seats.values() if not shards.sees(seat)]:
            port.send(peer, encode(Collect(steps=updates)))
    except (PeerGone, PeerSlow):
        return False
    return True


def _take(shards: ShardGroupShell, updates: int, peer: bytes, frames: list[memoryview]) -> None:
    with suppress(RemoteProtocolError):
        message, arrays = decode(frames, ShardMessage)
        if peer in shards.fleet.seats and isinstance(message, CollectedFrame) and message.steps == updates:
            shards.put(peer, message, arrays[0])
