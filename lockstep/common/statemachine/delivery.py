"""Sending of what a machine has decided: that a peer cannot be sent to is an event."""

from lockstep.common.statemachine.machine import PeerLeft
from lockstep.common.transport.port import Frames, PeerGone, PeerSlow, ServerPort


def deliver(port: ServerPort, peer: bytes, frames: Frames) -> list[PeerLeft]:
    """Send frames to a peer; return that it has left if that cannot be."""
    try:
        port.send(peer, frames)
    except PeerGone:
        return [PeerLeft(peer=peer, reason="its connection is gone")]
    except PeerSlow:
        return [PeerLeft(peer=peer, reason="it does not read what it is sent")]
    return []
