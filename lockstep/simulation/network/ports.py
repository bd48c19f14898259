"""Our two ports over the wires of a simulation: what a shell sends and receives takes time there, and may be lost."""

from collections.abc import Sequence

from common.transport.port import Frames, PeerGone, Shortcut
from lockstep.simulation.network.direction import Message
from lockstep.simulation.network.wires import Hub, Network, SimulatedWire
from lockstep.simulation.world import Process


class SimulatedServer:
    """The end that hears all clients of an address."""

    def __init__(self, hub: Hub) -> None:
        self._hub, self._limits = hub, hub.network.limits
        self._queue = self._limits.queue
        hub.owner.arrivals.append(hub.next_arrival)

    @property
    def address(self) -> str:
        return self._hub.address

    def lost(self) -> list[bytes]:
        lost, self._hub.lost = self._hub.lost, []
        return lost

    def receive(self, timeout_s: float | None) -> tuple[bytes, Message] | None:
        hub = self._hub
        hub.owner.tick()
        received = hub.next(hub.owner.time())
        if received is None:
            hub.has_news = False
        else:
            hub.known.add(received[0])
            hub.network.world.note_message(hub.owner.name, received[1])
        return received

    def send(self, peer: bytes, frames: Frames) -> None:
        owner = self._hub.owner
        owner.tick()
        self._limits.check(frames)
        wire = self._hub.wires.get(peer)
        if wire is None:
            raise PeerGone("no connection to this peer: expected one that was heard and has not gone")
        wire.send_down(_copy(frames), self._queue, owner.time())

    def cut(self, peer: bytes) -> None:
        wire = self._hub.wires.get(peer)
        if wire is not None:
            wire.break_off()

    def allow(self, queue: int) -> None:
        self._queue = max(self._queue, queue)

    def shorten(self, peer: bytes, shortcut: Shortcut) -> None:
        shortcut.close()

    def close(self, linger_s: float = 0.0) -> None:
        self._hub.close(linger_s)


class SimulatedClient:
    """The end that dials, and dials again."""

    def __init__(self, wire: SimulatedWire) -> None:
        self._wire, self._limits = wire, wire.network.limits
        wire.client.arrivals.append(wire.down.next_arrival)

    def receive(self, timeout_s: float | None) -> Message | None:
        wire = self._wire
        wire.client.tick()
        if wire.down.next_arrival() > wire.client.time():
            return None
        message = wire.down.flying.popleft()[1]
        wire.network.world.note_message(wire.client.name, message)
        return message

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        self._wire.client.tick()
        self._limits.check(frames)
        self._wire.send(_copy(frames), self._limits.queue)

    def shorten(self, shortcut: Shortcut | None) -> None:
        if shortcut is not None:
            shortcut.close()

    def close(self, linger_s: float = 0.0) -> None:
        self._wire.close(linger_s)


def serve(network: Network, address: str, owner: Process) -> SimulatedServer:
    """Return the server at an address; `AddressError` while there is another."""
    return SimulatedServer(network.open(address, owner))


def dial(network: Network, address: str, owner: Process) -> SimulatedClient:
    """Return a client of an address, whether there is a server yet or not."""
    return SimulatedClient(network.dial(address, owner))


def wait_in_the_world(ports: Sequence[object], timeout_s: float | None) -> None:
    """Wait as a process of the world does: by acting later."""


def _copy(frames: Frames) -> Message:
    # A copy, so that a sender that overwrites its buffer is not seen, as over a socket.
    return [memoryview(bytes(frame)) for frame in frames]
