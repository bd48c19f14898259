"""A shortcut between two processes of one user on one machine: a system socket, in addition to ZeroMQ's.

A message over ZeroMQ wakes three threads in turn: the one that sends, the one that receives, the one that waits for it.
A packet over a shortcut wakes one. If vectors lie in shared memory and only headers travel, that is a fifth of an
exchange's time. Like ZeroMQ's messages, a packet orders memory: its receiver sees what was written before it was sent.
"""

import select
import socket
from dataclasses import dataclass, field
from pathlib import Path

from lockstep.common.transport.ipc_path import private_files
from lockstep.common.transport.port import Frame, Frames, PeerGone, PeerSlow

#: Longest packet in bytes: the result of a lease of all the micro-batches that a job may have.
PACKET_BYTES = 2**15

#: Most callers that wait for an answer: more than a machine has workers.
BACKLOG = 128


@dataclass
class PacketSocket:
    """One end."""

    _socket: socket.socket

    @property
    def descriptor(self) -> int:
        return self._socket.fileno()

    def send(self, frame: Frame, timeout_s: float = 0.0) -> None:
        try:
            if not self._put(frame) and not (self._has_room(timeout_s) and self._put(frame)):
                raise PeerSlow("too many packets wait for this peer: expected one that reads them")
        except OSError as error:
            raise PeerGone(f"the shortcut has ended: {error.strerror}") from None

    def _put(self, frame: Frame) -> bool:
        try:
            self._socket.send(frame)
        except BlockingIOError:
            return False
        return True

    def _has_room(self, timeout_s: float) -> bool:
        waiting = select.poll()
        waiting.register(self._socket, select.POLLOUT)
        return timeout_s > 0.0 and bool(waiting.poll(timeout_s * 1000.0))

    def receive(self) -> bytes | None:
        """Return the next packet, None if none has come; raises PeerGone at the end, and after one too long."""
        try:
            packet = self._read()
        except BlockingIOError:
            return None
        except OSError as error:
            raise PeerGone(f"the shortcut has ended: {error.strerror}") from None
        if not 0 < len(packet) <= PACKET_BYTES:
            raise PeerGone("the shortcut has ended")
        return packet

    def _read(self) -> bytes:
        try:
            return self._socket.recv(PACKET_BYTES + 1)
        except ConnectionResetError:
            # The other end was closed before it had read all of ours. Linux reports that first, and once; what it had
            # sent before is still there.
            return self._socket.recv(PACKET_BYTES + 1)

    def close(self) -> None:
        self._socket.close()


def is_short(frames: Frames) -> bool:
    """Tell whether a message may go over a shortcut: not an empty one, which reads as its end."""
    return len(frames) == 1 and 0 < memoryview(frames[0]).nbytes <= PACKET_BYTES


@dataclass
class Callers:
    """Where others ask for a shortcut: a socket file that only this user may open."""

    _socket: socket.socket
    #: Unanswered callers, by name, and those whose name has not come yet.
    _waiting: dict[bytes, PacketSocket] = field(default_factory=dict)
    _nameless: list[PacketSocket] = field(default_factory=list)

    @classmethod
    def at(cls, path: Path) -> "Callers | None":
        """Listen, until `close`; None if the system has no such sockets, or the path is too long for one."""
        try:
            listening = _packets()
        except OSError:
            return None
        try:
            with private_files():
                listening.bind(str(path))
            listening.listen(BACKLOG)
        except OSError:
            listening.close()
            return None
        return cls(listening)

    def answer(self, name: str) -> PacketSocket | None:
        """Accept all new callers; return the shortcut to the one of this name, None if it has not called."""
        self._accept()
        nameless, self._nameless = self._nameless, []
        for caller in nameless[-BACKLOG:]:
            self._ask(caller)
        for caller in nameless[:-BACKLOG]:
            caller.close()
        return self._waiting.pop(name.encode(), None)

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._socket.accept()
            except OSError:
                return
            caller.setblocking(False)
            self._nameless.append(PacketSocket(caller))

    def _ask(self, caller: PacketSocket) -> None:
        """Keep a caller under its name, or until that has come; of two with one name, the later."""
        try:
            name = caller.receive()
        except PeerGone:
            caller.close()
            return
        if name is None:
            self._nameless.append(caller)
            return
        before = self._waiting.pop(name, None)
        if before is None and len(self._waiting) >= BACKLOG:
            before = self._waiting.pop(next(iter(self._waiting)))
        if before is not None:
            before.close()
        self._waiting[name] = caller

    def close(self) -> None:
        """Stop answering; the file stays."""
        self._socket.close()
        for caller in (*self._waiting.values(), *self._nameless):
            caller.close()
        self._waiting.clear()
        self._nameless.clear()


def call(path: Path, name: str) -> PacketSocket | None:
    """Ask for a shortcut by a name, which the other end may answer later or never; None if none is possible."""
    try:
        calling = _packets()
    except OSError:
        return None
    try:
        calling.connect(str(path))
        calling.send(name.encode())
    except OSError:
        calling.close()
        return None
    return PacketSocket(calling)


def _packets() -> socket.socket:
    """Return a socket that keeps packets whole and in order; `OSError` on systems without such (macOS)."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.setblocking(False)
    return made
