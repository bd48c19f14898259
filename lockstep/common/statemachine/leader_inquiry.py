"""Asks all servers that may lead a run which one does, over connections of its own. Decides nothing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from lockstep.common.errors import LockstepError, RemoteProtocolError
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import StandbyAddress, Term
from lockstep.common.protocol.standby_messages import LeaderNotice, LeaderRequest, ToStandbyMessage
from lockstep.common.runtime.clock import Clock
from lockstep.common.statemachine.leader_search import LeaderSearch
from lockstep.common.transport.port import ClientPort, Dial, PeerSlow

#: Seconds for which a server that begins or resumes a run waits for answers, and seconds between two looks.
INQUIRY_S, LOOK_S = 2.0, 0.05


@dataclass
class LeaderInquiry:
    """The connections to servers that have not answered yet, or that do not know the highest term."""

    search: LeaderSearch
    dial: Dial
    ports: dict[StandbyAddress, ClientPort] = field(default_factory=dict)

    def ask(self, servers: Sequence[StandbyAddress], *notices: LeaderNotice) -> None:
        """Ask servers which one leads the run, and send them notices; close the connections to all others."""
        for server in [one for one in self.ports if one not in servers]:
            self.ports.pop(server).close()
        for server in servers:
            with suppress(LockstepError):
                if server not in self.ports:
                    self.ports[server] = self.dial(server.address, server.public)
                for message in (LeaderRequest(), *notices):
                    with suppress(PeerSlow):  # it may be stopped, and is asked again
                        self.ports[server].send(encode(message))

    def hear(self, wait_s: float = 0.0) -> Term | None:
        """Return a higher term than was seen, if an answer names one; each server is waited for a while."""
        for server, port in list(self.ports.items()):
            for notice in _notices(port, wait_s):
                if self.search.on_notice(server, notice):
                    return notice.term
        return None

    def find(
        self, clock: Clock, is_wanted: Callable[[LeaderNotice], bool]
    ) -> tuple[StandbyAddress, LeaderNotice] | None:
        """Ask all servers; return the first answer that is wanted, and its sender, or None if none comes in time."""
        search, until = self.search, clock.now() + INQUIRY_S
        try:
            self.ask(search.servers())
            while (awaited := set(search.unanswered()) & set(self.ports)) and (left := until - clock.now()) > 0.0:
                self.hear(min(LOOK_S, left / len(awaited)))
                for server in self.ports:
                    notice = search.notices.get(server.address)
                    if notice is not None and is_wanted(notice):
                        return server, notice
            return None
        finally:
            self.close()

    def close(self) -> None:
        """Close all connections."""
        self.ask([])


def _notices(port: ClientPort, wait_s: float) -> Iterator[LeaderNotice]:
    while (frames := port.receive(wait_s)) is not None:
        wait_s = 0.0
        with suppress(RemoteProtocolError):
            message, _ = decode(frames, ToStandbyMessage)
            if isinstance(message, LeaderNotice):
                yield message
