"""Whether the weights are still numbers, where no loss may tell: what is not finite must not get on unnoticed.

A loss that is not finite names its layer, and so is waited for: most often the next step has one. But what nothing is
computed from for a while, a row of an embedding or a running statistic, would get into checkpoints and into the result.
"""

from dataclasses import dataclass

from common.aggregation.layout import ParameterLayout
from ps.coordinator.divergence import spoilt_text
from ps.coordinator.effects import Finish, UpdateWeights
from ps.coordinator.membership import Membership
from ps.shard.shard import Shard


class NonFiniteWeightsError(ArithmeticError):
    """The weights are not finite; the text is what a person is told."""


@dataclass
class NonFiniteGuard:
    """What is known of it."""

    layout: ParameterLayout
    #: What a person is told, empty while all weights are finite.
    text: str = ""

    def judged(self, finish: Finish) -> Finish:
        """Return how a run ends: not well with such weights."""
        return Finish(failure=self.text, is_diverged=True) if self.text and not finish.failure else finish

    def look(self, done: UpdateWeights, shard: Shard, roster: Membership, *, others_are_finite: bool = True) -> None:
        """Look at the weights after an update, once those who waited for them have them."""
        place = shard.first_not_finite()
        if self.text or (place is None and others_are_finite):
            return
        named = {member.rank: member.named() for member in roster.members.values()}
        shares = [(share.lo, share.hi, named.get(share.rank, f"worker {share.rank}")) for share in done.account.shares]
        self.text = spoilt_text(done.step, "" if place is None else self.layout.name_at(place), sorted(shares))
