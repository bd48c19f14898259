"""What a client hears of its own handshakes; decides nothing."""

import zmq
from zmq.utils.monitor import parse_monitor_message

_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class Handshakes:
    """The handshakes of one socket. To be closed before the socket: else its context would never end."""

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self._socket = socket
        self._monitor: zmq.Socket[bytes] = socket.get_monitor_socket(_EVENTS)
        #: Whether the last one went well.
        self.is_through = False
        #: Whether the server said that it does not let this client in.
        self.is_refused = False
        #: How many have failed since the last that went well.
        self.failed = 0

    def look(self) -> None:
        """Take in what ZeroMQ tells."""
        while not self._monitor.closed and int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event = parse_monitor_message(self._monitor.recv_multipart(zmq.DONTWAIT))["event"]
            self.is_through = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            self.is_refused = event == zmq.EVENT_HANDSHAKE_FAILED_AUTH
            self.failed = 0 if self.is_through else self.failed + 1

    def close(self) -> None:
        if not self._monitor.closed:
            self._socket.disable_monitor()
            self._monitor.close(0)
