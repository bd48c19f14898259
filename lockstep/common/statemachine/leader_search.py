"""The search for the server that leads a run: among its addresses, each asked in turn, or all at once. Pure.

A worker, a shard and a standby ask one server at a time, with their usual question, until one leads the run. A server
that resumes a run, or that was stopped for a while, asks all others. Each answer carries a term, and names the leader.
"""

from collections import Counter
from dataclasses import dataclass, field

from lockstep.common.protocol.messages import NO_TERM, NotLeading, StandbyAddress, Term
from lockstep.common.protocol.standby_messages import LeaderNotice
from lockstep.common.statemachine.machine import backoff_s

#: Seconds within which a server that runs answers.
ANSWER_S = 1.0

#: Seconds until a server that does not answer is asked again, at first. One that was there may be back at any moment.
FIRST_RETRY_S = 2.0

#: How many times the silence that counts a process waits at a standby for other processes that miss the server.
MOST_WAITS = 6

#: Seconds for which a standby that takes over may be silent: it loads the data and the model.
OPENING_S = 60.0


@dataclass
class LeaderSearch:
    """The servers that may lead a run, and the one that is asked."""

    #: The addresses that a person gave. If it is not known which key a standby has, its address is here with each that
    #: it may have.
    given: tuple[StandbyAddress, ...]
    #: The address of this process, which is not asked; empty if it has none.
    own: str = ""
    #: The first of them with each other key that a standby there may have: asked once the server there has another key.
    keyed: tuple[StandbyAddress, ...] = ()
    #: The other servers of the run, as the leader named them last.
    named: tuple[StandbyAddress, ...] = ()
    #: The highest term that was seen.
    term: Term = NO_TERM
    #: The server that is asked, and the time at which the search turned to it.
    server: StandbyAddress = field(init=False)
    arrived: float = 0.0
    #: When that server last sent anything, or was last asked; and how often it was asked since it sent anything.
    heard: float = 0.0
    asked: float = 0.0
    tries: int = 0
    #: Its last answer, if it is a standby.
    answer: NotLeading | None = None
    #: The server that was left last: a standby that still hears it does not send this process back at once.
    left: str = ""
    #: By address, the last answers of servers that were asked which one leads the run.
    notices: dict[str, LeaderNotice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server = self.given[0] if self.given else StandbyAddress(address=self.own)

    def servers(self) -> list[StandbyAddress]:
        """Return the servers that may lead the run, in the order in which they are asked.

        An address may be given with several keys, one of which is right: all of them are asked there, until a server
        has named the standby and its key.
        """
        last = self.server
        if not self.named and self.given in ((), (last,)):  # asked with each message, and most runs have one server
            return [last] if last.address != self.own else []
        keys = Counter(one.address for one in self.given)
        named = {one.address: one for one in self.named}
        known = named if keys[last.address] > 1 else {last.address: last, **named}
        found = dict.fromkeys(known.get(one.address, one) for one in (*self.given, *self.named, last))
        return [one for one in found if one.address != self.own]

    def has_choice(self) -> bool:
        """Tell whether there is another server to ask."""
        return len(self.servers()) > 1

    def on_message(self, now: float) -> None:
        """Record that the server sent something, or that this process was busy until now."""
        self.heard = self.asked = now
        self.tries = 0

    def on_leader(self, now: float) -> None:
        """Record that the server leads the run: it has the key with which it was asked, and no other."""
        here = self.server
        self.given = tuple(dict.fromkeys(here if one.address == here.address else one for one in self.given))
        self.on_message(now)

    def on_asked(self, now: float) -> None:
        """Record that the server is asked."""
        self.asked = now
        self.tries += 1

    def retry_at(self, takeover_s: float, most_s: float, seed: str) -> float:
        """Return when a server that does not answer is asked again: early enough if there is another one to ask."""
        first_s = min(FIRST_RETRY_S, takeover_s / 2) if self.has_choice() else FIRST_RETRY_S
        return self.asked + backoff_s(self.tries + 1, first_s=first_s, most_s=most_s, seed=seed)

    def leaves_at(self, takeover_s: float, *, is_led: bool) -> float | None:
        """Return when to ask another server if this one says nothing, None if no other is known.

        `is_led` tells whether this process has its place at this server, which led the run.
        """
        if not self.has_choice():
            return None
        if is_led:
            # Asked once at least: a process that was stopped for an hour has not been listening.
            answered = self.asked + min(ANSWER_S, takeover_s / 4)
            return max(self.heard + takeover_s, answered) if self.tries else None
        match self.answer:
            case NotLeading(state="taking over"):
                return self.heard + OPENING_S
            case NotLeading(state="opening"):
                # It answers as often as it is asked: if it is silent, it is gone, or another server leads the run.
                return self.heard + takeover_s
            case NotLeading(state="silent"):
                # It waits here for others that miss the server, as long as the standby answers; but not for ever, since
                # another standby may lead the run.
                return min(self.heard + takeover_s, self.arrived + MOST_WAITS * takeover_s)
            case _:
                # If the standby hears the server, it is this process that does not: perhaps it does by now.
                return self.arrived + takeover_s

    def on_not_leading(self, answer: NotLeading) -> StandbyAddress | None:
        """Record the answer of a standby; return the leader that it names, if that is to be asked now."""
        self.answer, leader = answer, answer.leader
        if leader is None or leader.address in (self.own, self.server.address, self.left):
            return None
        return next((one for one in self.servers() if one.address == leader.address), leader)

    def following(self) -> StandbyAddress:
        """Return the next server to ask, the same one if there is no other."""
        servers = self.servers()
        # By its address, if its key was learned since.
        same = [one for one in servers if one == self.server] or [
            one for one in servers if one.address == self.server.address
        ]
        return servers[(servers.index(same[0]) + 1) % len(servers)]

    def with_other_key(self) -> StandbyAddress | None:
        """Return where to ask a server that has another key than the one it was asked with; None if no key is left."""
        self.ask_with_each_key()
        following = self.following()
        is_there = following.address == self.server.address and following != self.servers()[0]
        return following if is_there else None

    def ask_with_each_key(self) -> None:
        """Let the first address be asked with each key that a server there may have."""
        self.given, self.keyed = (*self.given[:1], *self.keyed, *self.given[1:]), ()

    def turn_to(self, server: StandbyAddress, now: float) -> None:
        """Ask another server from now on; the one that is left stays one to ask, until a leader names the others."""
        if self.server.address not in {one.address for one in (*self.given, *self.named)}:
            # Such as a standby that has led the run since, and names only the others: it may be restarted.
            self.named = (*self.named, self.server)
        self.left, self.server, self.arrived, self.answer = self.server.address, server, now, None
        self.on_message(now)

    # All servers at once

    def unanswered(self) -> list[StandbyAddress]:
        """Return the servers that have not answered which one leads the run."""
        return [one for one in self.servers() if one.address not in self.notices]

    def unsettled(self) -> list[StandbyAddress]:
        """Return the servers that do not know yet that the run is led in the highest term that was seen."""
        notices = self.notices
        return [one for one in self.servers() if one.address not in notices or notices[one.address].term != self.term]

    def on_notice(self, asked: StandbyAddress, notice: LeaderNotice) -> bool:
        """Record an answer; tell whether the run is led in a higher term than was seen."""
        self.notices[asked.address] = notice
        if notice.term.is_above(self.term):
            return True
        if notice.address not in ("", self.own, *(one.address for one in self.servers())):
            # A standby that follows another server: that may lead the run in a term of before.
            self.named = (*self.named, StandbyAddress(address=notice.address))
        return False
