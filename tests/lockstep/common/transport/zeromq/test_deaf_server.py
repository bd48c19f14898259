"""A peer that fills the queue of a server which does not listen just then, and goes without a word, does it no harm."""

import socket
import struct
import subprocess
import sys
from contextlib import suppress

import pytest

from tests.lockstep.common.transport.zeromq import zmtp

#: Seconds for which the server does not listen: longer than ZeroMQ took from one heartbeat to the next, when there were
#: any. With them it was aborted by an assertion of libzmq's.
DEAF_S = 7.0

#: Prints its address, listens once it is told to, and prints how much it heard, and how many went.
SERVER = """
import sys
from lockstep.common.transport.zeromq.ports import serve

server, heard, lost = serve("tcp://127.0.0.1:0"), 0, []
print(server.address, flush=True)
sys.stdin.readline()
while server.receive(1.0) is not None:
    heard += 1
print(heard, len(server.lost()))
"""

#: More than wait in a server's queue for one peer.
MESSAGES = 100


@pytest.mark.slow
def test_a_peer_that_goes_while_its_messages_wait_does_not_end_the_server() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        with zmtp.shaken(server.stdout.readline().strip()) as connection:
            zmtp.send_all(connection, [zmtp.message([b"x"])] * MESSAGES)
            # It goes as a host does that was reset.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with suppress(subprocess.TimeoutExpired):
                server.wait(0.5)
        with suppress(subprocess.TimeoutExpired):
            server.wait(DEAF_S)
        told, _ = server.communicate("listen\n")
        assert server.returncode == 0
        heard, lost = map(int, told.split())
        assert lost == 1
        assert 0 < heard <= MESSAGES
