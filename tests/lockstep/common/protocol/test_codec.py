"""The codec gives back what it was given, and answers anything else with the project's typed error."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.checking.simulation.messages import AnyMessage
from lockstep.common.errors import FailureKind, ProtocolError, RefusalKind, RemoteProtocolError
from lockstep.common.job.job import Job
from lockstep.common.protocol.codec import HEADER_LIMIT, ITEMS_LIMIT, decode, encode, kind_of
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import (
    CallbackDecision,
    ComputeFailed,
    Diverged,
    Dropped,
    Echo,
    EpochRecord,
    Eviction,
    Finished,
    HandedOver,
    Join,
    Lease,
    Leave,
    Message,
    MultiStepLease,
    MultiStepResult,
    MultiStepWithdrawal,
    NodeMessage,
    NotLeading,
    Ping,
    Ready,
    Refused,
    Result,
    Samples,
    SamplesRequest,
    ServerMessage,
    Standby,
    StandbyAddress,
    StandbysChanged,
    Status,
    StatusRequest,
    SumsFrame,
    Term,
    Weights,
    Welcome,
    Withdrawal,
    WorkerMessage,
    WorkerStatus,
)
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.shard_messages import (
    Admit,
    Begin,
    Collect,
    CollectedFrame,
    Forget,
    Hello,
    InitialFrame,
    SendWeightsTo,
    ShardJoin,
    ShardReady,
    ShardWelcome,
    Squares,
    SquaresRequest,
    SumsAck,
    Update,
    UpdateDone,
    WorkerLost,
)
from lockstep.common.protocol.standby_messages import (
    CommandOutcome,
    Drain,
    FilePart,
    FilePartRequest,
    LeaderNotice,
    LeaderRequest,
    MirrorRequest,
    Promote,
    RunFile,
    RunFiles,
)

DIGEST = "0123456789abcdef" * 4

NOT_A_MESSAGE = "^a header that is not a message of this protocol: "
TERM = Term(run="r", number=2, server="s")
ONES = np.ones(2, np.float32)
EXAMPLES: list[Message] = [
    Join(protocol=1, incarnation="a1", host="b", pid=7, fingerprint=fingerprint()),
    Join(
        protocol=1, incarnation="a1", host="b", pid=7, fingerprint=fingerprint(), machine="c", cores=[0, 5], processes=2
    ),
    Ready(rank=0, term=Term()),
    Ready(nonce="0123456789abcdef" * 2, makers=3, rank=2, term=Term(run="r", number=7, server="s")),
    SumsFrame(step=3, lo=0, hi=2, start=131072),
    Result(work="train", step=3, lo=0, hi=2, loss_sum=1.5, count=4, compute_s=0.1, losses=bytes(range(8))),
    Result(work="evaluate", step=3, lo=0, hi=2, loss_sum=float("inf"), count=4, compute_s=0.1),
    ComputeFailed(work="train", step=3, lo=0, hi=2, traceback="Traceback …"),
    Diverged(work="train", step=3, micro_batch=1, layer="0 (Linear)"),
    Dropped(work="evaluate", step=3, number=7, computed=2),
    Leave(reason="interrupted"),
    Ping(),
    StatusRequest(),
    CallbackDecision(epoch=1, stops=True),
    Welcome(
        rank=2, run="r", job=Job(model={"class": "Linear", "args": [2, 3]}), layout=DIGEST, dataset=DIGEST, source=""
    ),
    Refused(reason="other numerics", kind=RefusalKind.NUMERICS),
    Eviction(reason="silent for 9 s"),
    Standby(reason="enough"),
    Samples(part="test", places=b"\1\0\0\0"),
    SamplesRequest(part="train", places=b"\1\0\0\0\2\0\0\0"),
    Echo(number=2),
    Weights(step=4, start=0),
    Lease(work="train", step=4, lo=2, hi=4, number=7),
    Withdrawal(work="audit", step=4, number=7),
    MultiStepLease(number=3, incarnation="life-1", first=4, last=90, reads=1, memory=1),
    MultiStepWithdrawal(number=3),
    MultiStepResult(number=3, is_done=True),
    Finished(reason=""),
    Finished(reason="a loss is not finite", kind=FailureKind.DIVERGED),
    Status(
        run="r",
        model="mlp",
        phase="training",
        epoch=1,
        epochs=2,
        step=3,
        steps=4,
        loss=0.5,
        accuracy=0.5,
        images_per_s=1.0,
        elapsed_s=1.0,
        eta_s=1.0,
        min_workers=1,
        workers=[WorkerStatus(rank=0, host="h", pid=1, state="idle", samples=3, compute_s=0.5)],
        history=[EpochRecord(epoch=1, loss=1.0, accuracy=0.1, test_loss=1.0, test_accuracy=0.2, wall_s=1.0)],
        failure="",
    ),
    ShardJoin(protocol=1, incarnation="a1", host="b", pid=7, fingerprint=fingerprint(), address="tcp://127.0.0.1:5556"),
    ShardReady(index=1),
    SumsAck(rank=1, step=3, lo=0, hi=2),
    Squares(step=3),
    CollectedFrame(name="weights", steps=4, start=0),
    UpdateDone(step=3, checksum=str(2**64 - 1)),
    WorkerLost(rank=1, reason="it does not read what it is sent"),
    ShardWelcome(
        index=1,
        options=RunOptions(servers=2),
        run="r",
        job=Job(model="mlp"),
        training_samples=60_000,
        test_samples=10_000,
        size=7850,
        parameter_size=7850,
    ),
    InitialFrame(name="momenta", start=0),
    Begin(steps=3),
    Admit(rank=1, incarnation="a1"),
    Forget(rank=1),
    SendWeightsTo(rank=1, step=3),
    SquaresRequest(step=3, divisor=32.0),
    Update(step=3, divisor=32.0, scale=0.5, ranks=[0, 1], collected="all"),
    Update(step=3, divisor=32.0, scale=None, ranks=[], collected="nothing"),
    Collect(steps=3),
    Hello(rank=1, incarnation="a1"),
    StandbysChanged(standbys=(StandbyAddress(address="tcp://127.0.0.1:5557"),)),
    HandedOver(standby=StandbyAddress(address="tcp://127.0.0.1:5557", public="k" * 40)),
    NotLeading(state="silent", reason="1 of the 3 of the last step say so"),
    MirrorRequest(protocol=1, host="b", pid=7, address="tcp://127.0.0.1:5557", term=TERM, step=3, is_whole=True),
    FilePartRequest(name="checkpoints/step-00000003.safetensors", digest=DIGEST, start=8),
    RunFiles(
        term=TERM,
        run="r",
        step=3,
        steps=9,
        checkpoint=2,
        files=[RunFile(name="ledger.jsonl", size=3, digest=DIGEST)],
        electors=[0, 1],
        standbys=(),
        place=5,
        options=RunOptions(),
    ),
    FilePart(name="ledger.jsonl", digest=DIGEST, start=0, size=19),
    LeaderRequest(),
    LeaderNotice(term=TERM, address="tcp://127.0.0.1:5557"),
    Promote(),
    Drain(),
    CommandOutcome(is_accepted=True, text="it leads the run from now on"),
]

#: Whatever comes any way.
ANY = AnyMessage | CommandOutcome


def vectors_for(message: Message) -> list[np.ndarray[tuple[int], np.dtype[np.float32]]]:
    carriers = Echo | SumsFrame | Samples | Weights | InitialFrame | CollectedFrame | Squares | FilePart
    return [np.arange(5, dtype=np.float32)] if isinstance(message, carriers) else []


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
        encode(Ready(rank=0, term=Term()), [ONES])


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
        [header(type="ready", rank=0, term={}, extra=1)],
        [header(type="lease", work="train", step=-1, lo=0, hi=1)],
        [header(type="lease", work="steal", step=0, lo=0, hi=1)],
        [header(type="ready", rank=0, term={}), b"1234"],
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
    ids=range(17),
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
