"""The shortcuts between a server and its peers, by peer and by what is waited for."""

from dataclasses import dataclass, field

from common.runtime.interrupts import held_back
from common.transport.port import Frames, PeerGone, Shortcut
from common.transport.shared_memory.packet_socket import is_short
from common.transport.zeromq.socket import LimitedSocket


@dataclass
class Shortcuts:
    """One server's; a peer whose shortcut has ended is spoken with as before it had one."""

    #: What waits for them too.
    socket: LimitedSocket
    _of_peers: dict[bytes, Shortcut] = field(default_factory=dict)
    _by_descriptor: dict[int, bytes] = field(default_factory=dict)

    def add(self, peer: bytes, shortcut: Shortcut) -> None:
        """Speak with a peer over this from now on."""
        with held_back():
            self.drop(peer)
            self._of_peers[peer] = shortcut
            self._by_descriptor[shortcut.descriptor] = peer
            self.socket.watch(shortcut.descriptor)

    def drop(self, peer: bytes) -> None:
        """Close a peer's, if it has one."""
        with held_back():
            shortcut = self._of_peers.pop(peer, None)
            if shortcut is not None:
                self.socket.unwatch(shortcut.descriptor)
                del self._by_descriptor[shortcut.descriptor]
                shortcut.close()

    def descriptors(self) -> list[int]:
        """Return what is to be waited for."""
        return list(self._by_descriptor)

    def take(self, descriptor: int) -> tuple[bytes, list[memoryview]] | None:
        """Return the next message that came over one, with its peer; None where there is none."""
        peer = self._by_descriptor.get(descriptor)
        if peer is None:
            return None
        try:
            packet = self._of_peers[peer].receive()
        except PeerGone:
            # Which the peer has not: its connection tells that.
            self.drop(peer)
            return None
        return None if packet is None else (peer, [memoryview(packet)])

    def send(self, peer: bytes, frames: Frames) -> bool:
        """Send a short message to a peer that has one; return whether it was. Raises PeerSlow."""
        shortcut = self._of_peers.get(peer)
        if shortcut is None or not is_short(frames):
            return False
        try:
            shortcut.send(frames[0])
        except PeerGone:
            # What it has said before that may still be there: whoever reads finds the end.
            return False
        return True

    def close(self) -> None:
        """Close all."""
        for peer in list(self._of_peers):
            self.drop(peer)
