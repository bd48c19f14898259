"""The shortcuts of a port over ZeroMQ: how short messages go to a peer on this machine, and come from it."""

from dataclasses import dataclass, field

from lockstep.common.runtime.interrupts import held_back
from lockstep.common.transport.port import Frames, PeerGone, Shortcut
from lockstep.common.transport.shared_memory.packet_socket import is_short
from lockstep.common.transport.zeromq.socket import LimitedSocket

#: A message with its peer.
Received = tuple[bytes, list[memoryview]]


@dataclass
class Shortcuts:
    """The shortcuts of one port, by peer and by descriptor; without one, messages go over ZeroMQ."""

    #: Whose wait they end.
    socket: LimitedSocket
    _of_peers: dict[bytes, Shortcut] = field(default_factory=dict)
    _by_descriptor: dict[int, bytes] = field(default_factory=dict)

    def add(self, peer: bytes, shortcut: Shortcut) -> None:
        """Use this shortcut to a peer from now on."""
        with held_back():
            self.drop(peer)
            self._of_peers[peer] = shortcut
            self._by_descriptor[shortcut.descriptor] = peer
            self.socket.watch(shortcut.descriptor)

    def drop(self, peer: bytes) -> None:
        """Close the shortcut to a peer, if it has one."""
        with held_back():
            shortcut = self._of_peers.pop(peer, None)
            if shortcut is not None:
                self.socket.unwatch(shortcut.descriptor)
                del self._by_descriptor[shortcut.descriptor]
                shortcut.close()

    def descriptors(self) -> list[int]:
        """Return the descriptors to wait for."""
        return list(self._by_descriptor)

    def receive(self, descriptor: int) -> Received | None:
        """Return the next message that came over one, with its peer; None if there is none."""
        peer = self._by_descriptor.get(descriptor)
        if peer is None:
            return None
        try:
            packet = self._of_peers[peer].receive()
        except PeerGone:
            # The end of the shortcut is not that of the peer, which its connection reports.
            self.drop(peer)
            return None
        return None if packet is None else (peer, [memoryview(packet)])

    def send(self, peer: bytes, frames: Frames, timeout_s: float = 0.0) -> bool:
        """Send a short message to a peer that has one; return whether it was. Raises PeerSlow."""
        shortcut = self._of_peers.get(peer)
        if shortcut is None or not is_short(frames):
            return False
        try:
            shortcut.send(frames[0], timeout_s)
        except PeerGone:
            # What the peer sent before that may still be there: reading it finds the end.
            return False
        return True

    def close(self) -> None:
        """Close all."""
        for peer in list(self._of_peers):
            self.drop(peer)
