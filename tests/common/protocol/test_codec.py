"""The codec gives back what it was given, and answers anything else with the project's typed error."""

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import FailureKind, ProtocolError, RefusalKind, RemoteProtocolError
from common.job.job import Job
from common.protocol.codec import HEADER_LIMIT, decode, encode
from common.protocol.fingerprint import fingerprint
from common.protocol.messages import (
    CallbackDecision,
    ComputeFailed,
    Diverged,
    EpochStatus,
    Eviction,
    Finished,
    Join,
    Lease,
    Leave,
    Message,
    Ping,
    Ready,
    Refused,
    Result,
    Samples,
    SamplesRequest,
    ServerMessage,
    Standby,
    Status,
    StatusRequest,
    SumsFrame,
    Weights,
    Welcome,
    WorkerMessage,
    WorkerStatus,
)
from common.protocol.shard_messages import (
    AddFromMemory,
    Admit,
    Begin,
    Collect,
    CollectedFrame,
    Forget,
    Hello,
    InitialFrame,
    SendWeightsTo,
    ShardJoin,
    ShardMessage,
    ShardReady,
    ShardWelcome,
    Squares,
    SquaresRequest,
    SumsAck,
    ToShardMessage,
    Update,
    UpdateDone,
    WorkerLost,
    WorkerToShardMessage,
)

DIGEST = "0123456789abcdef" * 4
EXAMPLES: list[Message] = [
    Join(protocol=1, incarnation="a1", host="b", pid=7, fingerprint=fingerprint()),
    Ready(),
    SumsFrame(step=3, lo=0, hi=2, start=131072),
    Result(work="train", step=3, lo=0, hi=2, loss_sum=1.5, correct=3, count=4, compute_s=0.1, losses=bytes(range(8))),
    Result(work="evaluate", step=3, lo=0, hi=2, loss_sum=float("inf"), correct=3, count=4, compute_s=0.1),
    ComputeFailed(work="train", step=3, lo=0, hi=2, traceback="Traceback …"),
    Diverged(work="train", step=3, micro_batch=1, layer="0 (Linear)"),
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
    Weights(step=4, start=0),
    Lease(work="train", step=4, lo=2, hi=4, number=7, slot=1),
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
        history=[EpochStatus(epoch=1, loss=1.0, accuracy=0.1, test_loss=1.0, test_accuracy=0.2, wall_s=1.0)],
        failure="",
    ),
    ShardJoin(protocol=1, incarnation="a1", host="b", pid=7, fingerprint=fingerprint(), address="tcp://127.0.0.1:5556"),
    ShardReady(obstacle="no room"),
    SumsAck(rank=1, step=3, lo=0, hi=2),
    Squares(step=3),
    CollectedFrame(name="weights", steps=4, start=0),
    UpdateDone(step=3, checksum=str(2**64 - 1)),
    WorkerLost(rank=1, reason="it does not read what it is sent"),
    ShardWelcome(
        index=1,
        servers=2,
        run="r",
        job=Job(model="mlp"),
        training_samples=60_000,
        test_samples=10_000,
        size=7850,
        parameter_size=7850,
    ),
    InitialFrame(name="momenta", start=0),
    Begin(steps=3),
    Admit(rank=1, incarnation="a1", shares=True),
    Forget(rank=1),
    SendWeightsTo(rank=1, step=3),
    AddFromMemory(rank=1, slot=1, step=3, lo=0, hi=2),
    SquaresRequest(step=3, count=32),
    Update(step=3, count=32, scale=0.5, ranks=[0, 1], collected="all"),
    Update(step=3, count=32, scale=None, ranks=[], collected="nothing"),
    Collect(steps=3),
    Hello(rank=1, incarnation="a1"),
]

#: Whatever comes any way.
ANY = WorkerMessage | ServerMessage | ShardMessage | ToShardMessage | WorkerToShardMessage


def vectors_for(message: Message) -> list[np.ndarray[tuple[int], np.dtype[np.float32]]]:
    is_carrier = isinstance(message, SumsFrame | Samples | Weights | InitialFrame | CollectedFrame | Squares) or (
        isinstance(message, Result) and message.work == "train"
    )
    return [np.arange(5, dtype=np.float32)] if is_carrier else []


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_round_trip(message: Message) -> None:
    vectors = vectors_for(message)
    decoded, arrays = decode([bytes(frame) for frame in encode(message, vectors)], ANY)
    assert decoded == message
    assert [array.tolist() for array in arrays] == [vector.tolist() for vector in vectors]
    assert all(not array.flags.writeable for array in arrays)


def test_every_message_is_among_the_examples() -> None:
    assert {type(example) for example in EXAMPLES} == set(Message.__subclasses__())


def test_the_sums_of_a_result_may_have_gone_before_it() -> None:
    (result,) = (each for each in EXAMPLES if isinstance(each, Result) and each.work == "train")
    assert decode(encode(result), WorkerMessage) == (result, [])


def test_an_array_too_many_is_our_own_fault() -> None:
    with pytest.raises(ProtocolError, match="a Ready carries 0 arrays, not 1"):
        encode(Ready(), [np.zeros(1, dtype=np.float32)])


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
        [header(type="ready", extra=1)],
        [header(type="lease", work="train", step=-1, lo=0, hi=1)],
        [header(type="lease", work="steal", step=0, lo=0, hi=1)],
        [header(type="ready"), b"1234"],
        [header(type="weights", step=0, start=0)],
        [header(type="weights", step=0, start=0), b"123"],
        [header(type="weights", step=0, start=0), b"1234", b"1234"],
        [header(type="sums_frame", step=0, lo=0, hi=1, start=0)],
        [header(type="sums_frame", step=0, lo=0, hi=1, start=-1), b"1234"],
        [b"\x00" * (HEADER_LIMIT + 1)],
        [b"\x91" * 16384 + b"\xc0"],  # sixteen thousand nested lists
        [b"\xdd\x00\xff\xff\xff" + b"\xc0" * 100],  # a list that claims sixteen million elements
        [(b"\xdc\xff\xff" * 4000)[:16384]],  # lists of 65,535 within one another: the allocation bomb
    ],
    ids=range(17),
)
def test_nonsense_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(frames, WorkerMessage | ServerMessage)


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
