"""Addresses as this machine and others dial them."""

import pytest

from lockstep.common.errors import UnreachableError
from lockstep.launch.endpoints import address_towards


def test_a_machine_is_reached_from_itself_at_loopback_and_from_nowhere_at_nothing() -> None:
    assert address_towards("127.0.0.1") == "127.0.0.1"
    with pytest.raises(UnreachableError, match="no interface of this machine leads to"):
        address_towards("no-such-host.invalid")
