"""Whatever bytes a peer sends are a message of the protocol or a `RemoteProtocolError`, and cost little."""

import contextlib

import msgspec
import pytest

from lockstep.common.errors import RemoteProtocolError
from lockstep.common.protocol.codec import Buffer, decode, decode_header, encode
from lockstep.common.protocol.messages import Message
from tests.fuzz.bar import amounts, bear, examine
from tests.fuzz.mutation import damaged
from tests.fuzz.wire import BOMBS, frames_of, made_up, odd_frames
from tests.lockstep.common.protocol.test_codec import ANY, EXAMPLES

#: The headers of all messages.
HEADERS = [frames_of(message)[0] for message in EXAMPLES]


def look(header: bytes) -> None:
    """Decode a header; what is a message has to be one that we could send, and has to stay the same."""
    message = decoded(header)
    if isinstance(message, str):
        assert len(message) < 1000, "an error is one line that a person can read"
        assert message.isprintable(), "what a peer sent gets into our log as it is"
        return
    again = decode_header(frames_of(message)[0], ANY)
    assert msgspec.msgpack.encode(again) == msgspec.msgpack.encode(message)


def decoded(header: bytes) -> Message | str:
    """Return what a header holds, or why it is refused."""
    try:
        return decode_header(header, ANY)
    except RemoteProtocolError as error:
        return str(error)


@amounts("headers, damaged")
def test_damaged_headers(cases: int) -> None:
    examine(cases, lambda tape: damaged(tape, tape.choose(HEADERS), HEADERS), look)


@amounts("headers, made up")
def test_made_up_headers(cases: int) -> None:
    examine(cases, made_up, look)


@amounts("frames")
def test_frames_that_do_not_belong_together(cases: int) -> None:
    def check(frames: list[Buffer]) -> None:
        with contextlib.suppress(RemoteProtocolError):
            message, arrays = decode(frames, ANY)
            assert len(encode(message, arrays)) == 1 + len(arrays)
            assert all(not array.flags.writeable for array in arrays)

    examine(cases, odd_frames, check)


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=list(BOMBS))
def test_a_bomb_is_refused_before_it_takes_memory(bomb: bytes) -> None:
    def explode() -> None:
        with pytest.raises(RemoteProtocolError):
            decode_header(bomb, ANY)

    assert len(bomb) <= 16_500
    bear(explode)


def test_a_header_of_any_length_is_refused_by_its_length() -> None:
    with pytest.raises(RemoteProtocolError, match="expected at most"):
        decode_header(bytes(2**21), ANY)
