"""Texts that a peer may send are limited, and ours keep to the limit."""

import math
from collections.abc import Iterator
from typing import get_args

import msgspec
import pytest
from msgspec import inspect

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import RefusalKind
from lockstep.common.job.job import Job
from lockstep.common.job.metrics import MOST_SUMS
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import (
    CORES_LIMIT,
    NAME_LIMIT,
    PLACES_BYTES,
    PROCESSES_LIMIT,
    TEXT_LIMIT,
    CallbackDecision,
    Diverged,
    Dropped,
    Finished,
    Join,
    Lease,
    Message,
    Ping,
    Ready,
    Refused,
    Result,
    Samples,
    SamplesRequest,
    ServerMessage,
    Status,
    StatusRequest,
    SumsFrame,
    Welcome,
    Withdrawal,
    WorkerMessage,
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


def test_results_and_sums_name_their_node() -> None:
    result = Result(work="train", step=0, lo=2, hi=4, loss_sum=0.0, count=0, compute_s=0.0)
    assert result.node() == Node(2, 4)
    assert SumsFrame(step=0, lo=2, hi=4, start=0).node() == Node(2, 4)


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


def taken(kind: type[Message], **values: object) -> bool:
    """Tell whether a peer takes a message with these values."""
    try:
        msgspec.convert({"type": kind.__struct_config__.tag, **values}, kind)
    except msgspec.ValidationError:
        return False
    return True


LEASE = {"work": "train", "step": 0, "lo": 0, "hi": 1}
RESULT = {**LEASE, "loss_sum": 1.0, "count": 0, "compute_s": 0.0}
READY = {"rank": 0, "part": ""}
JOIN = msgspec.to_builtins(Join(protocol=1, incarnation="a", host="h", pid=1, fingerprint=fingerprint()))
NUMBERED = {"number": 0}
DIVERGED = {**NUMBERED, "micro_batch": 0, "layer": ""}
WELCOME = msgspec.to_builtins(Welcome(rank=0, run="r", job=Job(), layout="0" * 64, dataset="0" * 64, source=""))
WORKER = {"rank": 0, "host": "h", "pid": 1, "state": "active", "samples": 0, "compute_s": 0.0}
EPOCH = {"epoch": 1, "loss": 0.5, "test_loss": 0.5, "wall_s": 1.0}
STATUS = {
    **dict.fromkeys(("epoch", "epochs", "step", "steps", "min_workers"), 0),
    **dict.fromkeys(("loss", "images_per_s", "elapsed_s", "eta_s"), 0.0),
    **dict.fromkeys(("run", "model", "phase", "failure"), ""),
    "workers": [],
    "history": [],
}


@pytest.mark.parametrize(
    ("kind", "values", "field", "good", "bad"),
    [
        (Finished, {}, "reason", ["", "x" * 20_000, "a\nb"], ["x" * 20_001]),
        (Lease, LEASE, "step", [0, 2**62], [-1, 2**62 + 1, 0.5, True, "0"]),
        (Lease, LEASE, "lo", [0, 2**31], [-1, 2**31 + 1]),
        (Lease, LEASE, "hi", [0, 2**31], [-1, 2**31 + 1]),
        (Lease, LEASE, "number", [0, 2**62], [-1, 2**62 + 1]),
        (Lease, LEASE, "work", ["train", "audit", "validate", "evaluate"], ["", "Train", "steal"]),
        (Result, RESULT, "count", [0, 2**62], [-1, 2**62 + 1]),
        (Result, RESULT, "metrics", [b"", bytes(8 * MOST_SUMS)], [bytes(8 * MOST_SUMS + 1)]),
        (Result, RESULT, "compute_s", [0.0, 1e9], [-0.1, 1.1e9, math.inf, math.nan]),
        (Result, RESULT, "losses", [b"", bytes(4 * 4096)], [bytes(4 * 4096 + 1)]),
        (Result, RESULT, "digest", ["", "0123456789abcdef" * 4], ["0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n"]),
        (Join, JOIN, "machine", ["", "x" * 255], ["x" * 256, None]),
        (Join, JOIN, "processes", [1, PROCESSES_LIMIT], [0, PROCESSES_LIMIT + 1, "1", None]),
        (Join, JOIN, "cores", [[], [0, 2**62], [7] * CORES_LIMIT], [[7] * (CORES_LIMIT + 1), [-1], ["0"], 4, None]),
        (Join, JOIN, "processes", [1, PROCESSES_LIMIT], [0, PROCESSES_LIMIT + 1, -1, 1.5, None]),
        (Ready, READY, "rank", [0, 2**62], [-1, 1.5, None]),
        (Ready, READY, "makers", [0, PROCESSES_LIMIT], [PROCESSES_LIMIT + 1, -1, 1.5, None]),
        (Withdrawal, NUMBERED, "number", [0, 2**62], [-1, 2**62 + 1]),
        (Dropped, NUMBERED, "number", [0, 2**62], [-1, 2**62 + 1]),
        (Dropped, NUMBERED, "computed", [0, 2**31], [-1, 2**31 + 1, 0.5]),
        (Ready, READY, "nonce", ["", "0123456789abcdef" * 2], ["0" * 31, "0" * 33, "A" * 32, "0" * 32 + "\n", "\n"]),
        (Ready, READY, "obstacle", ["", "x" * 20_000], ["x" * 20_001]),
        (Diverged, DIVERGED, "layer", ["", "x" * 255, "0 (Linear)"], ["x" * 256, "\n", "a\n", "\x1b[2J", "\u202e"]),
        (Diverged, DIVERGED, "quantity", ["loss", "gradient"], ["", "weights"]),
        (
            SamplesRequest,
            {"part": "train", "places": b""},
            "places",
            [b"", bytes(PLACES_BYTES)],
            [bytes(PLACES_BYTES + 1)],
        ),
        (Samples, {"part": "train", "places": b""}, "places", [b"", bytes(PLACES_BYTES)], [bytes(PLACES_BYTES + 1)]),
        (Welcome, WELCOME, "layout", ["0123456789abcdef" * 4], ["", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n"]),
        (Welcome, WELCOME, "source", ["", "0123456789abcdef" * 4], ["0" * 63, "0" * 65, "A" * 64, "\n"]),
        (Welcome, WELCOME, "shards", [[], ["x" * 255] * 64], [["x"] * 65, ["x" * 256]]),
        (Status, STATUS, "workers", [[], [WORKER] * 4096], [[WORKER] * 4097, [{**WORKER, "host": "x" * 256}]]),
        (Status, STATUS, "history", [[], [EPOCH] * 1000], [[EPOCH] * 1001, [{**EPOCH, "epoch": -1}]]),
        (CallbackDecision, {"epoch": 1, "stops": True}, "stops", [True, False], [0, 1, "yes", None]),
    ],
)
def test_a_field_takes_what_is_within_its_limits(
    kind: type[Message], values: dict[str, object], field: str, good: list[object], bad: list[object]
) -> None:
    assert [value for value in good if not taken(kind, **{**values, field: value})] == []
    assert [value for value in bad if taken(kind, **{**values, field: value})] == []


def without_limit(field: inspect.Type, name: str) -> Iterator[str]:
    """Yield the fields that take a text, bytes, a list or a number of any size."""
    match field:
        case inspect.UnionType():
            for kind in field.types:
                yield from without_limit(kind, name)
        case inspect.ListType() | inspect.VarTupleType():
            yield from [name] if field.max_length is None else []
            yield from without_limit(field.item_type, name)
        case inspect.DictType():
            yield from [name] if field.max_length is None else []
            yield from without_limit(field.key_type, name)
            yield from without_limit(field.value_type, name)
        case inspect.StructType():
            for part in field.fields:
                yield from without_limit(part.type, f"{name}.{part.name}")
        case inspect.StrType(pattern=str() as pattern, max_length=None):
            yield from [] if pattern.endswith((r"}\Z", r"})?\Z")) else [name]
        case inspect.StrType() | inspect.BytesType():
            yield from [name] if field.max_length is None else []
        case inspect.IntType():
            yield from [name] if field.ge not in (0, 1) or (field.le is None and field.lt is None) else []
        case inspect.EnumType() | inspect.LiteralType() | inspect.BoolType() | inspect.FloatType() | inspect.NoneType():
            return
        case _:
            yield name


def test_what_is_sent_has_a_limit() -> None:
    kinds: set[type[Message]] = {*get_args(WorkerMessage), *get_args(ServerMessage)}
    found = [name for kind in kinds for name in without_limit(inspect.type_info(kind), kind.__name__)]
    # The first is compared, and the others come from the server, which checked them.
    others = ("Join.fingerprint", "Welcome.job", "Welcome.manifest", "Welcome.moments", "Welcome.options")
    assert [name for name in found if not name.startswith(others)] == []


def test_a_field_without_a_limit_would_be_found() -> None:
    class Loose(msgspec.Struct):
        a: str
        b: list[int]
        c: Ping | bytes

    assert sorted(without_limit(inspect.type_info(Loose), "it")) == ["it.a", "it.b", "it.b", "it.c"]


@pytest.mark.parametrize(
    "name", ["a\x00", "a\x1f", "a\x7f", "a\x85", "a\xa0", "a\xad", "\u061c", "\u200b", "\u2028", "\ufeff"]
)
def test_a_name_can_be_printed_in_a_line(name: str) -> None:
    assert not taken(Diverged, **{**DIVERGED, "layer": name})


@pytest.mark.parametrize("name", ["a b", "é", "日本", "~", "\xa1", "\u2010", "\u2030"])
def test_a_name_may_be_in_any_writing(name: str) -> None:
    assert taken(Diverged, **{**DIVERGED, "layer": name})


@pytest.mark.parametrize("length", [4, 5, 6, 7, 254, 255])
def test_a_text_is_shortened_to_the_limit_and_one_that_fits_is_not(length: int) -> None:
    assert shortened("x" * length, length) == "x" * length
    assert len(shortened("x" * (length + 1), length)) == (length - 1) // 2 * 2 + 1


def test_a_worker_may_leave_out_where_it_runs_and_what_it_has_computed_in_vain() -> None:
    join = msgspec.convert({key: value for key, value in JOIN.items() if key not in ("machine", "cores")}, Join)
    assert (join.machine, join.cores) == ("", [])
    assert msgspec.convert({"type": "dropped", **NUMBERED}, Dropped).computed == 0
