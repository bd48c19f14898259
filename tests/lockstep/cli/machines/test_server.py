"""`lockstep server`: how it listens, and what contradicts itself. What it serves is for tests/system."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from lockstep.cli.main import run
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.transport.port import Limits, PeerSlow
from lockstep.common.transport.zeromq.ports import dial
from lockstep.launch.serve import Listening

#: What the sockets' buffers and the backlog of a client may hold beside the queue, in frames of a MiB.
BUFFERED = 24

#: Messages that may wait for one peer.
QUEUE = Limits().queue


def test_before_the_model_is_known_little_waits_for_one_that_does_not_read() -> None:
    sent = 0
    with (
        closing(Listening("tcp://127.0.0.1:0", None, False).serve(RunOptions())) as server,
        closing(dial(server.address)) as client,
    ):
        client.send([b"hello"])
        received = server.receive(20.0)
        assert received is not None
        try:
            while sent <= QUEUE + BUFFERED:
                server.send(received[0], [bytes(2**20)])
                sent += 1
        except PeerSlow:
            pass
    assert QUEUE // 2 <= sent <= QUEUE + BUFFERED


#: A server that is refused before it has opened anything.
SERVER = ("server", "--model", "mlp", "--bind", "tcp://127.0.0.1:0")


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert run([*SERVER, *flags]) == 2
    return capsys.readouterr().err


def test_data_is_refused_before_it_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("one.npz", x=np.zeros((40, 3), np.float32), y=np.arange(40) % 2)
    assert run([*SERVER, "--data", "one.npz"]) == 2
    out, error = capsys.readouterr()
    assert (out, error.startswith("error: one.npz: has no test set")) == ("", True)


def test_an_audit_of_workers_with_other_numerics_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "audit = 0.05 with --allow-mixed-numerics" in refused(capsys, "--set", "audit=5%", "--allow-mixed-numerics")
