"""Connections of a ROUTER that have ended: libzmq tells of a file descriptor, and each message came over one."""

import zmq
from zmq.utils.monitor import parse_monitor_message

#: Peers of which is known that they were heard before: more than a server has at one time.
REMEMBERED = 8192


class Ends:
    """The ends of one socket's connections. To be closed before the socket: else its context would never end."""

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self._socket = socket
        self.monitor: zmq.Socket[bytes] = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        #: By descriptor, whose it is now.
        self._peers: dict[int, bytes] = {}
        #: The last peers that were heard: what waits of one that has ended may come when its descriptor is another's.
        self._heard: dict[bytes, None] = {}
        self._ended: list[bytes] = []

    def heard(self, peer: bytes, frame: zmq.Frame) -> None:
        """Book by which descriptor a peer is heard, of whose message this is the first frame."""
        if peer in self._heard:
            return
        # First: whose descriptor it was before has ended.
        self.look()
        descriptor = frame.get(zmq.SRCFD)
        assert isinstance(descriptor, int)
        self._peers[descriptor] = peer
        self._heard[peer] = None
        if len(self._heard) > REMEMBERED:
            del self._heard[next(iter(self._heard))]

    def look(self) -> None:
        """Take in what libzmq tells."""
        while int(self.monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event = parse_monitor_message(self.monitor.recv_multipart(zmq.DONTWAIT))
            peer = self._peers.pop(event["value"], None)
            if peer is not None:
                self._ended.append(peer)

    def has_any(self) -> bool:
        """Tell whether a peer has ended."""
        return bool(self._ended)

    def take(self) -> list[bytes]:
        """Return the peers that have ended, each once."""
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        if not self.monitor.closed:
            self._socket.disable_monitor()
            self.monitor.close(0)
