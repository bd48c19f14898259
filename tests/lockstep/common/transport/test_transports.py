"""The table of transports is complete, and no transport of a run on this machine is open to others."""

from typing import get_args

import pytest

from lockstep.common.transport.address import parse
from lockstep.common.transport.transports import TRANSPORTS, Transport, TransportProperties


def test_each_transport_has_a_row() -> None:
    assert tuple(TRANSPORTS) == get_args(Transport)


@pytest.mark.parametrize("transport", TRANSPORTS.values(), ids=TRANSPORTS)
def test_a_run_on_this_machine_is_reached_from_it_only(transport: TransportProperties) -> None:
    address = transport.local_address.format(folder="/a/folder", name="server")
    assert parse(address).is_loopback
    assert transport.needs_token == (not address.startswith("ipc:///a/folder/"))
