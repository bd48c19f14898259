"""Opens the ports over ZeroMQ, by tcp or ipc, and waits for them."""

import socket
from collections.abc import Sequence

import zmq
from msgspec.structs import replace

from lockstep.common.errors import AddressError
from lockstep.common.transport.address import Address, IpcAddress, TcpAddress, free_path, parse
from lockstep.common.transport.auth.credentials import Credential, Lock
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.port import Limits
from lockstep.common.transport.zeromq.client import ZeroMqClient
from lockstep.common.transport.zeromq.server import ZeroMqServer
from lockstep.common.transport.zeromq.socket import wait_for


def serve(
    address: str,
    *,
    lock: Lock = None,
    insecure: bool = False,
    limits: Limits | None = None,
    rejections: RejectionLog | None = None,
) -> ZeroMqServer:
    """Return a server that listens at `address`; its folder must exist, and port 0 or `*` is any that is free.

    `lock` decides on clients; refused connections are recorded in `rejections`. Raises AddressError if the address
    is malformed, in use, or open to other machines without keys and without `insecure`; KeyFileError if keys cannot be
    used.
    """
    parsed = parse(address)
    if isinstance(parsed, IpcAddress):
        free_path(parsed.path)
    else:
        # The checked address is the bound one: a name is looked up once.
        parsed = _bindable(parsed)
        if not (parsed.is_loopback or lock is not None or insecure):
            raise AddressError(
                f"address {address!r} can be reached from other machines: make keys (`lockstep keys create keys`) and "
                "add --keys keys, or listen on 127.0.0.1, or on a network that you trust add --insecure"
            )
    return ZeroMqServer(parsed, lock, limits or Limits(), rejections)


def dial(address: str, *, credential: Credential = None, limits: Limits | None = None) -> ZeroMqClient:
    """Return a client of the server at `address`, whether that is running yet or not; raises AddressError.

    `credential` is what it presents; with keys, it talks only to the server that they name.
    """
    return ZeroMqClient(server_at(address), credential, limits or Limits())


def server_at(address: str) -> Address:
    """Return the address of one server, to which nothing is sent; raises AddressError if it is none."""
    parsed = parse(address)
    if isinstance(parsed, TcpAddress) and (parsed.port == 0 or parsed.host == "*"):
        raise AddressError(
            f"address {address!r} does not name one server: expected its host and port, as it prints them"
        )
    return parsed


class PortPoller:
    """Waits until one of some ports may have a message; as `Wait`.

    To register many sockets takes longer than to wait for them, so they stay registered while the ports are the same.
    """

    def __init__(self) -> None:
        self._ports: list[object] = []
        #: The places of the ports, by the sockets that are waited for: a port may have opened others.
        self._places: dict[zmq.Socket[bytes], int] = {}
        self._poller = zmq.Poller()

    def __call__(self, ports: Sequence[object], timeout_s: float | None) -> Sequence[int]:
        if self._ports != [*ports] or any(end.closed for end in self._places):
            self._register(ports)
        is_waiting = timeout_s != 0.0
        for port in ports:
            if isinstance(port, ZeroMqServer):
                timeout_s = port.wait_s(timeout_s)
        ready = sorted({self._places[end] for end in wait_for(self._poller, timeout_s)})
        for port in () if ready or not is_waiting else ports:
            if isinstance(port, ZeroMqClient):
                port.read_events()
        return ready

    def _register(self, ports: Sequence[object]) -> None:
        self._ports, self._places, self._poller = [*ports], {}, zmq.Poller()
        for place, port in enumerate(ports):
            assert isinstance(port, ZeroMqServer | ZeroMqClient)
            for end in port.waited_for():
                self._poller.register(end, zmq.POLLIN)
                self._places[end] = place


def _bindable(address: TcpAddress) -> TcpAddress:
    """Return the address with its host's name looked up, so that the checked address is the bound one.

    ZeroMQ binds to numeric addresses and interfaces only. An interface's name stays, and so does an unknown one, which
    ZeroMQ reports.
    """
    host = address.host
    if host == "localhost":
        # On either loopback; the other may be switched off.
        return replace(address, host="127.0.0.1")
    if host == "*" or host in {name for _, name in socket.if_nameindex()}:
        return address
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return address
    return replace(address, host=str(found[0][4][0]))
