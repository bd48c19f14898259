"""Who sends more than a backlog, and nothing of it ever comes out whole, is found; who is only fast is not."""

from lockstep.common.transport.limits.ingress_quota import Flow, IngressQuota
from lockstep.common.transport.port import Limits

LIMITS = Limits(frame_bytes=1000, frames=4, backlog=8)


def flow(received_bytes: int, peer: bytes | None = b"one", descriptor: int = 7) -> Flow:
    return Flow(descriptor=descriptor, peer=peer, received_bytes=received_bytes)


def test_one_whose_messages_come_out_may_send_for_ever() -> None:
    quota = IngressQuota(LIMITS)
    for step in range(1000):
        quota.messages[b"one"] += 1
        assert quota.over_quota([flow(step * quota.allowance)]) == []


def test_one_whose_message_has_no_end_is_found() -> None:
    quota = IngressQuota(LIMITS)
    quota.messages[b"one"] += 1
    assert quota.over_quota([flow(5000)]) == []
    assert quota.over_quota([flow(5000 + quota.allowance)]) == []
    assert quota.over_quota([flow(5001 + quota.allowance)]) == [7]


def test_a_stranger_that_says_nothing_whole_is_found_and_nobody_else() -> None:
    quota = IngressQuota(LIMITS)
    others = [flow(10, b"two", 8)]
    assert quota.over_quota([flow(0, None), *others]) == []
    assert quota.over_quota([flow(quota.allowance + 1, None), *others]) == [7]


def test_who_comes_after_one_has_a_ration_of_its_own() -> None:
    quota = IngressQuota(LIMITS)
    quota.over_quota([flow(0, None)])
    quota.over_quota([])
    assert quota.over_quota([flow(quota.allowance, None)]) == []
    assert quota.over_quota([]) == []
    assert quota.over_quota([flow(quota.allowance + 1, None)]) == [7]
