"""The ports over ZeroMQ, by tcp or ipc: how they are opened, and waited for. Sees frames and never a message."""

from collections.abc import Sequence

import zmq

from common.errors import AddressError
from common.transport.address import IpcAddress, TcpAddress, parse
from common.transport.auth.credentials import Credential, Lock
from common.transport.ipc_path import make_free
from common.transport.limits.rejection_log import RejectionLog
from common.transport.port import Limits
from common.transport.zeromq.bindable import bindable
from common.transport.zeromq.client import ZeroMqClient
from common.transport.zeromq.server import LOOK_S, ZeroMqServer
from common.transport.zeromq.socket import wait_for


def serve(
    address: str,
    *,
    lock: Lock = None,
    insecure: bool = False,
    limits: Limits | None = None,
    denials: RejectionLog | None = None,
) -> ZeroMqServer:
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


def dial(address: str, *, credential: Credential = None, limits: Limits | None = None) -> ZeroMqClient:
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
