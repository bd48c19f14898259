"""Asks a server for the status of its run, and sends it what callbacks decide."""

from dataclasses import dataclass

from common.errors import UnreachableError
from common.protocol.codec import decode, encode
from common.protocol.messages import CallbackDecision, ServerMessage, Status, StatusRequest
from common.transport.port import ClientPort


@dataclass
class StatusClient:
    """An observer's connection to a server."""

    port: ClientPort
    #: Whether a question is on its way: another one would only wait behind it.
    is_waiting: bool = False

    def ask(self, timeout_s: float) -> Status | None:
        """Return how the run stands, None if no answer came in time: the next call waits on for it."""
        if not self.is_waiting:
            self.port.send(encode(StatusRequest()))
            self.is_waiting = True
        frames = self.port.receive(timeout_s)
        if frames is None:
            return None
        self.is_waiting = False
        message, _ = decode(frames, ServerMessage)
        return message if isinstance(message, Status) else None

    def decide(self, decision: CallbackDecision) -> None:
        """Send what callbacks decide; if it is lost, the status still says that the run is paused."""
        self.port.send(encode(decision))

    def close(self) -> None:
        """Close the connection."""
        self.port.close()


def ask_once(port: ClientPort, address: str, timeout_s: float) -> Status:
    """Return how the run at `address` stands; `UnreachableError` if nobody answers in time."""
    status = StatusClient(port).ask(timeout_s)
    if status is None:
        raise UnreachableError(f"no server answered at {address} within {timeout_s:g} s")
    return status
