"""A run over a bad network comes to the bits of one process, and nobody hangs; a slow link alone breaks nothing."""

import pytest

from lockstep.common.runtime.clock import SystemClock
from tests.system.alone import digest_alone
from tests.system.processes import Place, Process
from tests.system.relay import Relay, relayed

#: Seconds within which a run is over once the network is well again, at the most.
DEADLINE_S = 40.0

#: A model of half a million values: its vectors travel in several frames.
BIG = ("--model", "mlp", "--data", "tiny.npz", "--global-batch", "64", "--micro-batches", "4")

#: One that takes many steps in a moment.
SMALL = ("--model", "linear", "--data", "tiny.npz", "--global-batch", "48", "--micro-batches", "4", "--epochs", "40")


class Setting:
    """A server, its workers, and the network between them."""

    def __init__(self, place: Place, relay: Relay, server: Process, workers: list[Process]) -> None:
        self.place, self.relay, self.server, self.workers = place, relay, server, workers

    def digest(self, within_s: float = DEADLINE_S) -> str:
        """Wait for the end, which is to be a good one for all; return the digest of the weights."""
        code, self.out, error = self.server.end(within_s)
        assert (code, error) == (0, "")
        self.ends = [worker.end(within_s) for worker in self.workers]
        assert [code for code, _, _ in self.ends] == [0] * len(self.workers)
        return self.place.digest()


@pytest.fixture(autouse=True)
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)


def begin(place: Place, relay: Relay, server: Process, workers: int = 2) -> Setting:
    return Setting(
        place,
        relay,
        server,
        [place.start("worker", relay.address, "--workers", "1", "--apart") for _ in range(workers)],
    )


def served(place: Place, *job: str) -> tuple[Process, str]:
    """Start a server that waits for two workers; return where it listens, too."""
    # Otherwise the vectors would go through memory, where no network is.
    flags = ("--bind", "tcp://127.0.0.1:0", "--transport", "tcp", "--run-dir", "run", "--min-workers", "2")
    server = place.start("server", *job, *flags)
    return server, server.line_with("lockstep worker").split()[-1]


def over_a_slow_link(place: Place, bandwidth: float, steps: int) -> None:
    """Train over a link that carries so many bytes in a second, each way."""
    job = (*BIG, "--steps", str(steps))
    expected = digest_alone(*job)
    server, address = served(place, *job)
    with relayed(address) as relay:
        relay.up.bandwidth = relay.down.bandwidth = bandwidth
        setting = begin(place, relay, server)
        assert setting.digest(within_s=300.0) == expected
        # Nobody was disconnected, and nobody's work was given to another.
        assert relay.accepted == 2
        assert ") left:" not in setting.out
        assert "leased again" not in setting.out
        assert min(relay.up.carried, relay.down.carried) > steps * 2**21


def test_a_slow_link_alone_breaks_nothing(place: Place) -> None:
    over_a_slow_link(place, 8 * 2**20, steps=3)


def through_trouble(place: Place, trouble: str, seconds: float) -> None:
    """Let something happen to the network in the middle of a run, which goes on."""
    expected = digest_alone(*SMALL)
    server, address = served(place, *SMALL)
    with relayed(address) as relay:
        # So that the run lasts until the trouble comes.
        relay.up.delay_s = relay.down.delay_s = 0.003
        setting = begin(place, relay, server)
        server.line_with("epoch 2/")
        if trouble == "cut":
            relay.cut()
        else:
            relay.silence(seconds, up=trouble != "down", down=trouble != "up")
        began = SystemClock().now()
        assert setting.digest(within_s=seconds + DEADLINE_S) == expected
        assert SystemClock().now() - began >= seconds
        assert relay.accepted >= (4 if trouble == "cut" else 2)


def test_a_cut_is_survived(place: Place) -> None:
    through_trouble(place, "cut", 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("ways", ["up", "down", "both"])
def test_ten_seconds_of_silence_are_survived(place: Place, ways: str) -> None:
    through_trouble(place, ways, 10.0)
