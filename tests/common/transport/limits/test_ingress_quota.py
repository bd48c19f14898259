"""Who sends more than a backlog, and nothing of it ever comes out whole, is found; who is only fast is not."""

from common.transport.limits.ingress_quota import Flow, IngressQuota
from common.transport.port import Limits

LIMITS = Limits(frame_bytes=1000, frames=4, backlog=8)


def flow(received_bytes: int, peer: bytes | None = b"one", descriptor: int = 7) -> Flow:
    return Flow(descriptor=descriptor, peer=peer, received_bytes=received_bytes)


def test_one_whose_messages_come_out_may_send_for_ever() -> None:
    rations = IngressQuota(LIMITS)
    for step in range(1000):
        rations.heard[b"one"] += 1
        assert rations.gluttons([flow(step * rations.allowance)]) == []


def test_one_whose_message_has_no_end_is_found() -> None:
    rations = IngressQuota(LIMITS)
    rations.heard[b"one"] += 1
    assert rations.gluttons([flow(5000)]) == []
    assert rations.gluttons([flow(5000 + rations.allowance)]) == []
    assert rations.gluttons([flow(5001 + rations.allowance)]) == [7]


def test_a_stranger_that_says_nothing_whole_is_found_and_nobody_else() -> None:
    rations = IngressQuota(LIMITS)
    others = [flow(10, b"two", 8)]
    assert rations.gluttons([flow(0, None), *others]) == []
    assert rations.gluttons([flow(rations.allowance + 1, None), *others]) == [7]


def test_who_comes_after_one_has_a_ration_of_its_own() -> None:
    rations = IngressQuota(LIMITS)
    rations.gluttons([flow(0, None)])
    rations.gluttons([])
    assert rations.gluttons([flow(rations.allowance, None)]) == []
    assert rations.gluttons([]) == []
    assert rations.gluttons([flow(rations.allowance + 1, None)]) == [7]
