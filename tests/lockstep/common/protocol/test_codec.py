"""The codec gives back what it was given, and answers anything else with the project's typed error."""

import re
import tracemalloc
from collections.abc import Callable
from typing import Any, get_args

import msgpack
import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from lockstep.common.aggregation.slices import FRAME
from lockstep.common.data.manifest import Manifest
from lockstep.common.errors import ProtocolError, RemoteProtocolError
from lockstep.common.job.job import Job
from lockstep.common.protocol.codec import HEADER_LIMIT, ITEMS_LIMIT, decode, encode, kind_of
from lockstep.common.protocol.fingerprint import Fingerprint, fingerprint
from lockstep.common.protocol.messages import (
    Finished,
    Lease,
    Message,
    NodeMessage,
    Ready,
    Result,
    ServerMessage,
    Weights,
    Welcome,
    WorkerMessage,
)
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.transport.port import Limits
from tests.simulation.simulator.simulation import AnyMessage

DIGEST = "0123456789abcdef" * 4

NOT_A_MESSAGE = "^a header that is not a message of this protocol: "
ONES = np.ones(2, np.float32)

#: Whatever comes any way.
ANY = AnyMessage

#: Texts, of which each pattern of a field takes one.
TEXTS = ("a1", DIGEST, DIGEST[:32], "7")

#: Records whose values have to fit one another.
WHOLE: dict[type, Any] = {
    Job: msgspec.to_builtins(Job(model={"class": "Linear", "args": [2, 3]})),
    Fingerprint: msgspec.to_builtins(fingerprint()),
    RunOptions: msgspec.to_builtins(RunOptions(servers=2)),
    Manifest: None,
}


def value_of(kind: inspect.Type) -> Any:
    """Return a value that a field of this type takes."""
    match kind:
        case inspect.StructType():
            return WHOLE[kind.cls] if kind.cls in WHOLE else values_of(kind, is_full=True)
        case inspect.NamedTupleType():
            return [value_of(field.type) for field in kind.fields]
        case inspect.TupleType():
            return [value_of(item) for item in kind.item_types]
        case inspect.ListType() | inspect.VarTupleType():
            return [value_of(kind.item_type)]
        case inspect.UnionType():
            return value_of(next(each for each in kind.types if not isinstance(each, inspect.NoneType)))
        case inspect.LiteralType():
            return "train" if "train" in kind.values else kind.values[0]
        case inspect.EnumType():
            return next(iter(kind.cls)).value
        case inspect.StrType():
            return next(text for text in TEXTS if kind.pattern is None or re.search(kind.pattern, text))
        case inspect.BytesType():
            return b"\1\0\0\0"
        case inspect.DictType():
            return {}
        case _:
            return {inspect.IntType: 1, inspect.FloatType: 0.5, inspect.BoolType: True}[type(kind)]


def values_of(kind: inspect.StructType, *, is_full: bool) -> dict[str, Any]:
    """Return values for the fields of a record: all, or those without a default."""
    values = {field.encode_name: value_of(field.type) for field in kind.fields if field.required or is_full}
    return {**values, "lo": 0} if "lo" in values else values


def examples_of(kind: type[Message]) -> list[Message]:
    """Return a message with its necessary fields, and one with all of them."""
    info: Any = inspect.type_info(kind)
    tag = {"type": kind.__struct_config__.tag}
    return [msgspec.convert({**tag, **values_of(info, is_full=is_full)}, kind) for is_full in (False, True)]


EXAMPLES = [
    example for kind in sorted(get_args(ANY), key=lambda kind: str(kind.__name__)) for example in examples_of(kind)
]

CARRIERS = {"SumsFrame", "Samples", "Weights", "SliceFrame", "Squares", "FilePart"}


def vectors_for(message: Message) -> list[np.ndarray[tuple[int], np.dtype[np.float32]]]:
    is_carrier = type(message).__name__ in CARRIERS
    if isinstance(message, Lease | Result):
        is_carrier = message.start is not None
    return [np.arange(5, dtype=np.float32)] if is_carrier else []


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_round_trip(message: Message) -> None:
    vectors = vectors_for(message)
    decoded, arrays = decode([bytes(frame) for frame in encode(message, vectors)], ANY)
    assert decoded == message
    assert [array.tolist() for array in arrays] == [vector.tolist() for vector in vectors]
    assert all(not array.flags.writeable for array in arrays)


def test_every_message_is_among_the_examples() -> None:
    kinds = {*Message.__subclasses__(), *NodeMessage.__subclasses__()} - {NodeMessage}
    assert {type(example) for example in EXAMPLES} == kinds


def test_an_array_too_many_is_our_own_fault() -> None:
    with pytest.raises(ProtocolError, match=r"^a Ready carries 0 arrays, not 1$"):
        encode(Ready(rank=0, part=""), [ONES])


def header(**fields: object) -> bytes:
    packed = msgpack.packb(fields)
    assert isinstance(packed, bytes)
    return packed


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"\xc1"],
        [header(type="nonsense")],
        [header(type="ready", rank=0, part="", extra=1)],
        [header(type="lease", work="train", step=-1, lo=0, hi=1)],
        [header(type="lease", work="steal", step=0, lo=0, hi=1)],
        [header(type="ready", rank=0, part=""), b"1234"],
        [header(type="lease", work="train", step=0, lo=0, hi=1), b"1234"],
        [header(type="lease", work="train", step=0, lo=0, hi=1, start=0)],
        [header(type="weights", step=0, start=0)],
        [header(type="weights", step=0, start=0), b"123"],
        [header(type="weights", step=0, start=0), b"1234", b"1234"],
        [header(type="sums_frame", step=0, lo=0, hi=1, start=0)],
        [header(type="sums_frame", step=0, lo=0, hi=1, start=-1), b"1234"],
        [b"\x91" * 16384 + b"\xc0"],  # sixteen thousand nested lists
        [header(type=["weights"], step=0, start=0), b"1234"],
        [header(type={}, step=0, start=0), b"1234"],
        [header(type="weights", step=0, start=0), b"123456"],
    ],
    ids=range(19),
)
def test_nonsense_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(frames, WorkerMessage | ServerMessage)


def welcome(*arguments: object, **values: object) -> bytes:
    """Return the header of a welcome whose model has these arguments and these values: all the room there is."""
    whole = msgspec.to_builtins(Welcome(rank=0, run="r", job=Job(), layout=DIGEST, dataset=DIGEST, source=""))
    whole["job"]["model"] = {"class": "Linear", "args": arguments, **values}
    return header(**whole)


def model_in(frame: bytes) -> dict[str, Any]:
    message, _ = decode([frame], ServerMessage)
    assert isinstance(message, Welcome)
    assert isinstance(message.job.model, dict)
    return message.job.model


def test_a_header_is_as_long_as_the_limit_at_most() -> None:
    room = HEADER_LIMIT - len(welcome("x" * 2**16)) + 2**16
    assert len(frame := welcome("x" * room)) == HEADER_LIMIT
    assert model_in(frame)["args"] == ["x" * room]
    with pytest.raises(RemoteProtocolError, match="a header of 1048577 bytes: expected at most 1048576"):
        decode([welcome("x" * (room + 1))], ServerMessage)


def test_we_send_no_longer_header_than_a_peer_takes() -> None:
    def message(length: int) -> Welcome:
        job = Job(model={"class": "Linear", "args": ["x" * length]})
        return Welcome(rank=0, run="r", job=job, layout=DIGEST, dataset=DIGEST, source="")

    room = HEADER_LIMIT - len(encode(message(2**16))[0]) + 2**16
    assert len(encode(message(room))[0]) == HEADER_LIMIT
    with pytest.raises(ProtocolError, match=r"^the header of a Welcome has 1048577 bytes, over 1048576$"):
        encode(message(room + 1))


def test_a_list_has_as_many_elements_as_the_limit_at_most() -> None:
    assert model_in(welcome(*range(ITEMS_LIMIT)))["args"] == list(range(ITEMS_LIMIT))
    with pytest.raises(RemoteProtocolError, match=NOT_A_MESSAGE):
        decode([welcome(*range(ITEMS_LIMIT + 1))], ServerMessage)


def test_a_map_has_as_many_keys_as_the_limit_at_most() -> None:
    keys = {f"{number:x}": 0 for number in range(ITEMS_LIMIT - 1)}
    assert len(model_in(welcome(more={**keys, "x": 0}))["more"]) == ITEMS_LIMIT
    with pytest.raises(RemoteProtocolError, match=NOT_A_MESSAGE):
        decode([welcome(more={**keys, "x": 0, "y": 0})], ServerMessage)


@pytest.mark.parametrize("value", [b"x", msgpack.ExtType(1, b"x"), msgpack.Timestamp(1)])
def test_a_header_holds_neither_bytes_nor_types_of_its_own(value: object) -> None:
    with pytest.raises(RemoteProtocolError, match=NOT_A_MESSAGE):
        decode([welcome(value)], ServerMessage)


@pytest.mark.parametrize("count", [100, 300, 5000])
@pytest.mark.parametrize("claimed", [2**15 - 1, 2**16 - 1])
def test_lists_within_lists_take_no_more_room_than_their_header_may_have(count: int, claimed: int) -> None:
    """The allocation bomb: each list claims many elements, of which its first is the next list."""
    frame = (b"\xdc" + claimed.to_bytes(2, "big")) * count
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            decode([frame], WorkerMessage)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("wrap", [bytearray, lambda data: memoryview(bytearray(data)), zmq.Frame, bytes])
def test_arrays_are_read_only_whatever_they_arrive_in(wrap: Callable[[bytes], bytearray]) -> None:
    _, (array,) = decode([wrap(bytes(frame)) for frame in encode(Weights(step=0, start=0), [ONES])], ServerMessage)
    assert array.tolist() == [1.0, 1.0]
    assert not array.flags.writeable


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([], "a message of 0 frames: expected 1 or 2"),
        ([header(type="weights", step=0, start=0), b"1234", b"1234"], "a message of 3 frames: expected 1 or 2"),
        ([header(type="weights", step=0, start=0)], "a Weights with 0 arrays: expected 1$"),
        ([header(type="ping"), b"1234"], "a Ping with 1 arrays: expected 0$"),
        ([header(type="weights", step=0, start=0), b"12345"], "an array of 5 bytes: expected a multiple of 4"),
    ],
)
def test_the_number_of_frames_and_their_sizes_are_told(frames: list[bytes], text: str) -> None:
    with pytest.raises(RemoteProtocolError, match=text):
        decode(frames, ServerMessage)


def test_a_message_is_checked_by_the_class_that_its_tag_names() -> None:
    assert kind_of({"type": "lease", "step": -1}, ServerMessage) is Lease
    for unknown in ({"type": "result"}, {"type": ["lease"]}, {"TYPE": "lease"}, ["type"]):
        assert kind_of(unknown, ServerMessage) is ServerMessage


def test_what_is_no_message_is_refused_with_the_validators_reason() -> None:
    with pytest.raises(RemoteProtocolError, match=f"{NOT_A_MESSAGE}.*'result'"):
        decode([header(type="result")], ServerMessage)


def test_what_a_peer_wrote_is_quoted_in_one_line() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode([header(type="ping", **{"a\n\x1b[2J": 1})], WorkerMessage)
    assert str(caught.value).isprintable()


def test_an_array_in_another_order_of_bytes_or_of_places_is_sent_as_it_is_meant() -> None:
    for array in (np.array([1.0, 2.0], ">f4"), np.array([1.0, 9.0, 2.0, 9.0], np.float32)[::2]):
        frames = encode(Weights(step=0, start=0), [array])
        assert bytes(frames[1]) == np.array([1.0, 2.0], "<f4").tobytes()


def test_a_servers_message_is_no_workers() -> None:
    with pytest.raises(RemoteProtocolError):
        decode(encode(Finished(reason="")), WorkerMessage)


@settings(derandomize=True, deadline=None, max_examples=500)
@given(st.lists(st.binary(max_size=64), max_size=3))
def test_random_bytes_raise_only_the_typed_error(frames: list[bytes]) -> None:
    try:
        decode(frames, WorkerMessage | ServerMessage)
    except RemoteProtocolError:
        return


@settings(derandomize=True, deadline=None, max_examples=500)
@given(st.sampled_from(EXAMPLES), st.integers(0, 2**20), st.integers(0, 255))
def test_a_flipped_byte_is_a_message_or_the_typed_error(message: Message, at: int, value: int) -> None:
    frames = [bytearray(frame) for frame in encode(message, vectors_for(message))]
    frames[0][at % len(frames[0])] = value
    try:
        decoded, _ = decode(frames, WorkerMessage | ServerMessage)
    except RemoteProtocolError:
        return
    assert msgspec.to_builtins(decoded)


def test_a_message_has_room_for_a_header_and_for_one_frame_of_a_vector() -> None:
    assert (Limits().frames, Limits().frame_bytes) == (2, 4 * FRAME)
