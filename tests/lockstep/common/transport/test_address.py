"""Addresses are read strictly, and those that only this machine can reach are known."""

from pathlib import Path

import pytest

from lockstep.common.errors import AddressError
from lockstep.common.transport.address import IpcAddress, TcpAddress, parse


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://127.0.0.1:5555", TcpAddress("127.0.0.1", 5555)),
        ("tcp://127.0.0.1:*", TcpAddress("127.0.0.1", 0)),
        ("tcp://localhost:0", TcpAddress("localhost", 0)),
        ("tcp://*:1", TcpAddress("*", 1)),
        ("tcp://ps-0.example.org:65535", TcpAddress("ps-0.example.org", 65535)),
        ("tcp://[::1]:5555", TcpAddress("::1", 5555)),
        ("ipc:///run/lockstep.sock", IpcAddress(Path("/run/lockstep.sock"))),
        ("ipc://here", IpcAddress(Path("here"))),
        ("ipc:///" + "x" * 106, IpcAddress(Path("/" + "x" * 106))),
    ],
)
def test_addresses_are_read(text: str, address: TcpAddress | IpcAddress) -> None:
    assert parse(text) == address
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is malformed: expected 'tcp://HOST:PORT'"),
        ("localhost:5555", "did you mean 'tcp://localhost:5555'?"),
        ("127.0.0.1:99999", "has port 99999: expected 1 to 65535"),
        ("http://localhost:5555", "is malformed: expected 'tcp://HOST:PORT'"),
        ("tcp://", "is malformed"),
        ("tcp://localhost", "is malformed"),
        ("tcp://localhost:", "is malformed"),
        ("tcp://localhost:http", "is malformed"),
        ("tcp://local host:1", "is malformed"),
        ("tcp://localhost:1 ", "is malformed"),
        ("tcp://eth0;10.0.0.1:1", "is malformed"),
        ("tcp://::1:5555", "as 'tcp://127.0.0.1:5555' or 'tcp://[::1]:5555'"),
        ("tcp://[localhost]:5555", "has 'localhost' in brackets"),
        ("tcp://127.0.0.1:65536", "has port 65536: expected 1 to 65535"),
        ("ipc://", "expected 'ipc://PATH'"),
        ("ipc://*", "expected 'ipc://PATH'"),
        ("ipc://@abstract", "expected 'ipc://PATH'"),
        ("ipc:///folder/", "expected 'ipc://PATH'"),
        ("ipc:///a\0b", "expected 'ipc://PATH'"),
        ("ipc:///" + "x" * 107, "has a path of 108 bytes: expected at most 107"),
        ("ipc:///" + "ä" * 54, "has a path of 109 bytes"),
    ],
)
def test_what_is_malformed_is_named_with_what_was_expected(text: str, expected: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("*", False),
        ("192.168.0.1", False),
        ("localhost.example.org", False),
    ],
)
def test_loopback_is_known(host: str, is_loopback: bool) -> None:
    assert TcpAddress(host, 1).is_loopback is is_loopback
