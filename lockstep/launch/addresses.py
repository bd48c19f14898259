"""Addresses as a person meets them: how others dial this machine, and where a shard listens unless it is told."""

import os
import platform

from common.errors import AddressError
from common.transport.address import IpcAddress, parse


def dialled(address: str) -> str:
    """Return how another machine spells an address that stands for all of this one's."""
    for everywhere in ("//0.0.0.0:", "//[::]:"):
        address = address.replace(everywhere, f"//{platform.node() or 'HOST'}:")
    return address


def bind_beside(address: str) -> str:
    """Return where a shard of the server at `address` listens, as near to it; `AddressError` where nobody can know."""
    parsed = parse(address)
    if isinstance(parsed, IpcAddress):
        return f"{parsed}.{os.getpid()}"
    if not parsed.is_loopback:
        raise AddressError(
            f"the server at {address!r} is on another machine, and its workers may be on others: expected the address "
            "at which they reach this shard, as --bind tcp://0.0.0.0:0 --keys DIR"
        )
    return f"tcp://{'[::1]' if parsed.is_ipv6 else '127.0.0.1'}:0"
