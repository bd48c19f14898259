"""Detects weights that are not numbers although no loss shows it: values that are not finite must not go on unnoticed.

A loss that is not finite names its layer, and so is waited for: most often the next step has one. But what nothing is
computed from for a while, a row of an embedding or a running statistic, would get into checkpoints and the result.
"""

from dataclasses import dataclass

from lockstep.common.aggregation.layout import ParameterLayout
from lockstep.ps.coordinator.effects import UpdateWeights
from lockstep.ps.coordinator.failures import not_finite_text
from lockstep.ps.coordinator.membership import Membership
from lockstep.ps.shard.shard import Shard


class NonFiniteWeightsError(ArithmeticError):
    """The weights are not finite; the text is the message for people."""


@dataclass
class NonFiniteGuard:
    """The findings of the checks."""

    layout: ParameterLayout
    #: The message for people, empty while all weights are finite.
    text: str = ""

    def check(
        self, done: UpdateWeights, shard: Shard, membership: Membership, *, others_are_finite: bool = True
    ) -> None:
        """Check the weights after an update, once the workers that waited for them have them."""
        place = shard.not_finite
        if self.text or (place is None and others_are_finite):
            return
        named = {member.rank: member.named() for member in membership.members.values()}
        shares = [(share.lo, share.hi, named.get(share.rank, f"worker {share.rank}")) for share in done.account.shares]
        self.text = not_finite_text(done.step, "" if place is None else self.layout.name_at(place), sorted(shares))
