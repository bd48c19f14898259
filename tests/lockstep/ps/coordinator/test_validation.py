"""What follows from the job alone is not taken on anybody's word: counts, and that losses are numbers."""

import math
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from lockstep.common.errors import RemoteProtocolError
from lockstep.common.job.tally import pack_losses
from lockstep.common.protocol.messages import Lease, Result
from lockstep.ps.coordinator.failures import check_result, contradiction
from tests.lockstep.ps.runs import facts_of

FACTS = facts_of()


def result_with(**values: Any) -> Result:
    """Return an honest result over two of four micro-batches of 16 samples, with other values."""
    result = Result(
        work="train",
        step=0,
        lo=0,
        hi=2,
        loss_sum=2.0,
        count=8,
        compute_s=0.1,
        losses=pack_losses([1.0, 1.0]),
    )
    return msgspec.structs.replace(result, **values)


@pytest.mark.parametrize("work", ["train", "audit"])
def test_an_honest_result_is_plausible(work: str) -> None:
    assert contradiction(result_with(work=work), FACTS) == ""


@pytest.mark.parametrize(("lo", "hi", "count"), [(0, 1, 2), (0, 2, 4), (2, 4, 4), (3, 4, 2), (0, 4, 8)])
def test_the_short_batch_of_an_epoch_counts_less(lo: int, hi: int, count: int) -> None:
    losses = pack_losses([1.0] * (hi - lo))
    assert contradiction(result_with(step=2, lo=lo, hi=hi, count=count, losses=losses), FACTS) == ""
    assert "expected" in contradiction(result_with(step=2, lo=lo, hi=hi, count=count + 1, losses=losses), FACTS)


@pytest.mark.parametrize("count", [0, 7, 9, 16, 2**62])
def test_a_count_that_cannot_be_is_refused(count: int) -> None:
    assert contradiction(result_with(count=count), FACTS) == (
        f"a count of {count} for micro-batches 0-1 of step 0: expected 8"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite_are_told_by_themselves(value: float) -> None:
    assert "not finite" in contradiction(result_with(loss_sum=value), FACTS)
    assert "not finite" in contradiction(result_with(losses=pack_losses([1.0, value])), FACTS)
    assert "not finite" in contradiction(result_with(work="evaluate", loss_sum=value, losses=b""), FACTS)


@pytest.mark.parametrize("losses", [b"", b"1", bytes(4), bytes(12)])
def test_there_is_one_loss_for_each_micro_batch(losses: bytes) -> None:
    assert "expected 4 for each of its micro-batches" in contradiction(result_with(losses=losses), FACTS)


def test_what_is_of_no_round_is_for_the_books_to_refuse() -> None:
    lease = Lease(work="train", step=10**9, lo=0, hi=4096)
    odd = result_with(step=lease.step, lo=lease.lo, hi=lease.hi, count=3, losses=bytes(4 * 4096))
    assert contradiction(odd, FACTS) == ""


def test_each_target_of_a_sample_counts() -> None:
    of_three = replace(FACTS, targets=3)
    assert contradiction(result_with(count=24), of_three) == ""
    assert contradiction(result_with(), of_three) == "a count of 8 for micro-batches 0-1 of step 0: expected 24"


def test_the_steps_of_every_epoch_are_those_of_the_first() -> None:
    steps = FACTS.plan.steps_per_epoch
    assert contradiction(result_with(step=steps), FACTS) == ""
    assert contradiction(result_with(step=2 * steps + 2, count=4), FACTS) == ""
    assert contradiction(result_with(step=steps + 2), FACTS) != ""


def test_an_audited_micro_batch_has_its_loss() -> None:
    assert "losses of 0 bytes" in contradiction(result_with(work="audit", losses=b""), FACTS)


def test_no_micro_batches_have_no_losses() -> None:
    for lo in (1, 2, 3):
        assert contradiction(result_with(lo=lo, hi=1, losses=b""), FACTS) == ""  # of no round: not for us to refuse


def test_a_contradiction_is_a_breach_of_the_protocol() -> None:
    check_result(result_with(), FACTS)
    with pytest.raises(RemoteProtocolError) as raised:
        check_result(result_with(count=7), FACTS)
    assert str(raised.value) == contradiction(result_with(count=7), FACTS)
