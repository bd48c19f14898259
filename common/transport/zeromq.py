"""The ports over ZeroMQ, by tcp or ipc: ROUTER and DEALER with their traps closed. Sees frames and never a message."""

import errno
from collections.abc import Sequence

import zmq

from common.clock import SystemClock
from common.errors import AddressError
from common.transport.address import IpcAddress, TcpAddress, parse
from common.transport.bindable import bindable
from common.transport.credentials import Credential, Lock
from common.transport.denials import Denials
from common.transport.ipc_path import SocketFile, make_free, private_files
from common.transport.port import Frames, Limits, PeerSlow
from common.transport.probe import look_at
from common.transport.ration import Rations
from common.transport.trouble import Found, Trouble, explained
from common.transport.zeromq_armour import arm_client, arm_server
from common.transport.zeromq_ends import Ends
from common.transport.zeromq_handshakes import Handshakes
from common.transport.zeromq_porter import Porter
from common.transport.zeromq_socket import LimitedSocket, milliseconds, wait_for

# A worker that starts first dials at once when its server comes, and does not storm one that stays away.
_REDIAL_MS = 20
_REDIAL_MOST_MS = 1_000
_CONNECT_MS = 5_000

#: Seconds between two looks at what connections send that nothing comes of.
LOOK_S = 0.02

_CLOCK = SystemClock()

_BIND_ADVICE = {
    errno.EADDRINUSE: "is in use: stop what listens there, or choose another port or port 0 for any that is free",
    errno.EADDRNOTAVAIL: "is not an address of this machine: expected one, as 'tcp://127.0.0.1:5555'",
    errno.ENODEV: "has a host that is no address of this machine: expected one in digits, as 'tcp://127.0.0.1:5555'",
    errno.EACCES: "is not allowed for this user: choose a port above 1023, or a folder that you may write to",
    errno.ENOENT: "is in a folder that is not there: make it first",
    errno.ENOTDIR: "is in a folder that is not one: expected the path of a file in a folder",
}


def serve(
    address: str,
    *,
    lock: Lock = None,
    insecure: bool = False,
    limits: Limits | None = None,
    denials: Denials | None = None,
) -> "ZeroMqServer":
    """Return a server that listens at `address`; its folder must exist, and port 0 or `*` is any that is free.

    `lock` says whom it lets in; who was not is noted in `denials`. Raises AddressError where the address is malformed,
    in use, or open to other machines without keys and without `insecure`; KeyFileError where keys are of no use here.
    """
    parsed = parse(address)
    if isinstance(parsed, IpcAddress):
        make_free(parsed.path)
    else:
        # What is judged is what is bound to: a name is looked up once.
        parsed = bindable(parsed)
        if not (parsed.is_loopback or lock is not None or insecure):
            raise AddressError(
                f"address {address!r} is open to other machines, whoever they are: expected 127.0.0.1, ::1, localhost "
                "or ipc, or keys: make them by `lockstep keys create DIR` and add --keys DIR (or --insecure, only on a "
                "network that you trust)"
            )
    return ZeroMqServer(parsed, lock, limits or Limits(), denials)


def dial(address: str, *, credential: Credential = None, limits: Limits | None = None) -> "ZeroMqClient":
    """Return a client of the server at `address`, whether that is there yet or not; raises AddressError.

    `credential` is what it shows; with keys, it speaks with no other server than theirs.
    """
    parsed = parse(address)
    if isinstance(parsed, TcpAddress) and (parsed.port == 0 or parsed.host == "*"):
        raise AddressError(f"address {address!r} names no one server: expected its host and port, as the server shows")
    return ZeroMqClient(parsed, credential, limits or Limits())


def wait_for_any(ports: Sequence[object], timeout_s: float | None) -> None:
    """Wait until one of these ports of ours may have a message, or for so many seconds; None is for ever."""
    poller = zmq.Poller()
    for port in ports:
        assert isinstance(port, ZeroMqServer | ZeroMqClient)
        port.register(poller)
        if isinstance(port, ZeroMqServer) and port.has_connections():
            # Or less: what comes of it is looked at by `receive`.
            timeout_s = LOOK_S if timeout_s is None else min(timeout_s, LOOK_S)
    wait_for(poller, timeout_s)


class ZeroMqServer:
    """A ROUTER: libzmq gives each connection its identity, since two peers with one of their own lose one another."""

    def __init__(self, address: TcpAddress | IpcAddress, lock: Lock, limits: Limits, denials: Denials | None) -> None:
        self._socket = LimitedSocket(zmq.ROUTER, address, limits)
        # Without it, ROUTER drops silently what it cannot route or queue.
        self._socket.raw.set(zmq.ROUTER_MANDATORY, 1)
        #: Where nobody is to tell of them, they end no wait.
        self._tells_denials, self._denials = denials is not None, denials or Denials()
        try:
            arm_server(self._socket.raw, lock)
            # First, so that there is someone to ask when the first connection comes.
            self.porter = None if lock is None else Porter(self._socket.context, lock, self._denials)
            self._bind(address)
        except BaseException:
            self._socket.close(0.0)
            raise
        self._ends = Ends(self._socket.raw, self._denials, _CLOCK)
        self._socket.watch(self._ends.monitor)
        self._file = SocketFile(address.path) if isinstance(address, IpcAddress) else None
        self._address = self._socket.raw.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._rations = Rations(limits)
        self._looked = _CLOCK.now()

    def _bind(self, address: TcpAddress | IpcAddress) -> None:
        try:
            with private_files():
                self._socket.raw.bind(str(address))
        except zmq.ZMQError as error:
            advice = _BIND_ADVICE.get(error.errno or 0, f"cannot be bound to ({error.strerror}): choose another")
            raise AddressError(f"address {str(address)!r} {advice}") from None

    @property
    def address(self) -> str:
        return self._address

    def receive(self, timeout_s: float | None) -> tuple[bytes, list[memoryview]] | None:
        now = _CLOCK.now()
        end = None if timeout_s is None else now + timeout_s
        while True:
            self._look(now)
            frames = self._socket.receive(self._wait_s(now, end), extra=1)
            now = _CLOCK.now()
            if frames is None:
                self._ends.look()
                if self._ends.has_any() or self._has_denials(now):
                    return None
                # Otherwise it was the end of one that was never heard, and concerns nobody.
            elif len(frames) - 1 <= self._socket.limits.frames:
                break
            else:
                # On to what waits behind it: nobody's end is told before his last words.
                self._cut_long(bytes(frames[0]))
            if end is not None and now >= end:
                return None
        peer = bytes(frames[0])
        self._ends.heard(peer, self._socket.first)
        self._rations.heard[peer] += 1
        return peer, frames[1:]

    def _cut_long(self, peer: bytes) -> None:
        """Cut off a peer whose message, just read, has too many frames."""
        self._denials.note(f"cut off a peer: its message has more than {self._socket.limits.frames} frames")
        self._ends.heard(peer, self._socket.first)
        self._ends.cut(peer)

    def _has_denials(self, now: float) -> bool:
        return self._tells_denials and self._denials.has_news(now)

    def _wait_s(self, now: float, end: float | None) -> float | None:
        left = None if end is None else end - now
        if not self.has_connections():
            return left
        return LOOK_S if left is None else min(left, LOOK_S)

    def has_connections(self) -> bool:
        """Tell whether anybody is connected."""
        return self._ends.has_open()

    def _look(self, now: float) -> None:
        """Cut off who sends and sends, and of whom no message ever is whole."""
        if now < self._looked + LOOK_S:
            return
        self._looked = now
        self._ends.look()
        for descriptor in self._rations.gluttons(self._ends.flows()):
            self._denials.note(f"cut off a peer: its message of more than {self._rations.allowance} bytes has no end")
            self._ends.cut_off(descriptor)

    def cut(self, peer: bytes) -> None:
        self._socket.demand_open()
        self._ends.cut(peer)

    def lost(self) -> list[bytes]:
        self._socket.demand_open()
        lost = self._ends.take()
        for peer in lost:
            del self._rations.heard[peer]
        return lost

    def register(self, poller: zmq.Poller) -> None:
        """Let a poller wait for this port among others."""
        self._socket.register(poller)
        poller.register(self._ends.monitor, zmq.POLLIN)

    def send(self, peer: bytes, frames: Frames) -> None:
        self._socket.limits.check(frames)
        self._socket.send([peer, *frames])

    def allow(self, queue: int) -> None:
        # For connections that are there: a later one gets what was set when the socket was bound.
        self._socket.raw.set(zmq.SNDHWM, max(queue, self._socket.limits.queue))

    def close(self, linger_s: float = 0.0) -> None:
        if self._file is not None:
            # First, while nobody else can have bound to it.
            self._file.remove()
            self._file = None
        self._ends.close()
        self._socket.close(linger_s)


class ZeroMqClient:
    """A DEALER; what it sends before it is connected waits in its queue."""

    def __init__(self, address: TcpAddress | IpcAddress, credential: Credential, limits: Limits) -> None:
        self._address, self._credential = str(address), credential
        self._socket = LimitedSocket(zmq.DEALER, address, limits)
        self._socket.raw.set(zmq.RECONNECT_IVL, _REDIAL_MS)
        self._socket.raw.set(zmq.RECONNECT_IVL_MAX, _REDIAL_MOST_MS)
        self._socket.raw.set(zmq.CONNECT_TIMEOUT, _CONNECT_MS)
        self._handshakes = Handshakes(self._socket.raw)
        try:
            arm_client(self._socket.raw, credential)
            self._socket.raw.connect(self._address)
        except zmq.ZMQError as error:
            self.close()
            raise AddressError(f"address {self._address!r} cannot be dialled ({error.strerror}): correct it") from None
        except BaseException:
            self.close()
            raise

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        frames = self._socket.receive(timeout_s, extra=0)
        if frames is None:
            # Now and then it has to be read: ZeroMQ would wait for ever to tell us more.
            self._handshakes.look()
        return frames if frames is None or len(frames) <= self._socket.limits.frames else None

    def trouble(self) -> Trouble | None:
        """Return what is in the way of a connection, None where nothing is known to be; may take some seconds."""
        heard = self._handshakes.look()
        is_told = heard.is_through or heard.is_refused
        return explained(self._address, self._credential, heard, Found() if is_told else look_at(self._address))

    def register(self, poller: zmq.Poller) -> None:
        """Let a poller wait for this port among others."""
        self._socket.register(poller)

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        self._socket.limits.check(frames)
        try:
            self._socket.send(frames)
        except PeerSlow:
            # Asked only now, since nearly always there is room.
            if self._handshakes.look().is_over:
                self._redial()
            elif timeout_s <= 0.0 or not self._socket.raw.poll(milliseconds(timeout_s), zmq.POLLOUT):
                raise
            self._socket.send(frames)

    def _redial(self) -> None:
        """Dial anew where ZeroMQ has given up for good, and taken the queue along: another may listen there by now."""
        # Otherwise it counts as dialled still, and nothing happens.
        self._socket.raw.disconnect(self._address)
        self._socket.raw.connect(self._address)

    def close(self, linger_s: float = 0.0) -> None:
        self._handshakes.close()
        self._socket.close(linger_s)
