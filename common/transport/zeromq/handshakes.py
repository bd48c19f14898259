"""What a client hears of its own handshakes; decides nothing."""

from dataclasses import replace

import zmq
from zmq.utils.monitor import parse_monitor_message

from common.transport.diagnosis import Heard

_EVENTS = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_DELAYED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)


class Handshakes:
    """The handshakes of one socket. To be closed before the socket: else its context would never end."""

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self._socket = socket
        self._monitor: zmq.Socket[bytes] = socket.get_monitor_socket(_EVENTS)
        self._heard = Heard()

    def look(self) -> Heard:
        """Take in what ZeroMQ tells; return how things stand."""
        while not self._monitor.closed and int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._take(parse_monitor_message(self._monitor.recv_multipart(zmq.DONTWAIT))["event"])
        return self._heard

    def _take(self, event: int) -> None:
        match event:
            case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._heard = Heard(is_through=True)
            case zmq.EVENT_CONNECTED | zmq.EVENT_CONNECT_DELAYED | zmq.EVENT_CONNECT_RETRIED:
                self._heard = replace(self._heard, is_over=False)
            case zmq.EVENT_DISCONNECTED:
                # Unless it is told next that it will be tried again.
                self._heard = replace(self._heard, is_through=False, is_over=True)
            case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._heard = replace(self._heard, is_refused=True, failed=self._heard.failed + 1)
            case _:
                self._heard = replace(self._heard, failed=self._heard.failed + 1)

    def close(self) -> None:
        if not self._monitor.closed:
            self._socket.disable_monitor()
            self._monitor.close(0)
