"""Texts that a peer may send are limited, and ours keep to the limit."""

import msgspec
import pytest

from common.aggregation.tree import Node
from common.errors import RefusalKind
from common.protocol.messages import (
    NAME_LIMIT,
    TEXT_LIMIT,
    ComputeFailed,
    Finished,
    Message,
    Ping,
    Refused,
    Result,
    Status,
    StatusRequest,
    SumsFrame,
    shortened,
)


def test_a_short_text_stays_as_it_is() -> None:
    assert shortened("epoch 3 — done") == "epoch 3 — done"


@pytest.mark.parametrize("limit", [TEXT_LIMIT, NAME_LIMIT, 4, 3])
def test_a_long_text_loses_its_middle(limit: int) -> None:
    text = shortened("<" + "x" * 30_000 + ">", limit)
    assert len(text) <= limit
    assert text[0] == "<"
    assert text[-1] == ">"
    assert "…" in text


def test_what_is_no_unicode_is_spelled_out() -> None:
    assert shortened("caf\udce9") == "caf\\udce9"


@pytest.mark.parametrize("text", ["x" * 30_000, "\udce9" * 30_000])
def test_a_shortened_text_is_taken_by_the_peer(text: str) -> None:
    message = Finished(reason=shortened(text))
    assert msgspec.convert(msgspec.to_builtins(message), Finished) == message
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"type": "finished", "reason": text}, Finished)


def test_results_and_failures_name_their_node() -> None:
    result = Result(work="train", step=0, lo=2, hi=4, loss_sum=0.0, correct=0, count=0, compute_s=0.0)
    assert result.node() == ComputeFailed(work="train", step=0, lo=2, hi=4, traceback="").node() == Node(2, 4)


@pytest.mark.parametrize(
    ("kind", "tag"), [(SumsFrame, "sums_frame"), (Ping, "ping"), (StatusRequest, "status_request"), (Status, "status")]
)
def test_a_tag_is_the_name_of_its_class(kind: type[Message], tag: str) -> None:
    assert kind.__struct_config__.tag == tag


def test_a_refusal_for_its_version_can_be_read_by_another_version() -> None:
    assert msgspec.to_builtins(Refused(reason="other versions")) == {"type": "refused", "reason": "other versions"}
    other = Refused(reason="this is run 'green'", kind=RefusalKind.OTHER_RUN)
    assert msgspec.to_builtins(other)["kind"] == "other_run"
    assert msgspec.convert(msgspec.to_builtins(other), Refused) == other
