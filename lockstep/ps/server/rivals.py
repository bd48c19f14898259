"""The servers of other terms: one of them may lead the run by now, and others have to learn that this one does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lockstep.common.protocol.messages import Message, StandbyAddress, Term
from lockstep.common.statemachine.leader_inquiry import LeaderInquiry

#: Seconds for which a server that did not look for a while waits for the answers of its standbys.
HOLD_S = 0.5

#: Seconds between two notices to servers that do not know the term yet, and after a notice until answers are read.
NOTICE_S, ANSWER_S = 2.0, 0.1


@dataclass
class Rivals:
    """Asks other servers of a run which one leads it, and tells them this server's term until each knows it."""

    inquiry: LeaderInquiry
    #: When the rivals are told next, and when their answers are read before that.
    due: float = 0.0
    answers_due: float = math.inf
    #: When the server last looked, and until when it waits for answers instead of leading the run.
    looked: float | None = None
    held_until: float = -math.inf

    def deadline(self) -> float | None:
        """Return when `on_time` has something to do."""
        return min(self.due, self.answers_due) if self.inquiry.search.unsettled() else None

    def on_time(self, now: float, *notices: Message) -> Term | None:
        """Read answers, and send notices if they are due; return a higher term that an answer names."""
        search = self.inquiry.search
        if not search.unsettled() or now < min(self.due, self.answers_due):
            return None
        self.answers_due = math.inf
        above = self.inquiry.hear()
        if above is None and now >= self.due:
            self.due, self.answers_due = now + NOTICE_S, now + ANSWER_S
            self.inquiry.ask(search.unsettled(), *notices)
        return above

    def holds(self, now: float, absent_s: float, standbys: Sequence[StandbyAddress], request: Message) -> bool:
        """Tell whether it is not known now which server leads, after so many seconds in which this one did not look."""
        search, looked = self.inquiry.search, self.looked
        self.looked = now
        if now < self.held_until:
            asked = {one.address for one in standbys}
            return any(one.address in asked for one in search.unanswered())
        if looked is None or now - looked < absent_s or not standbys:
            return False
        search.named = (*search.named, *standbys)
        for standby in standbys:
            search.notices.pop(standby.address, None)
        self.held_until = now + HOLD_S
        self.inquiry.ask(search.unsettled(), request)
        return True
