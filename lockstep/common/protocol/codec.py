"""Messages to frames and back: a msgpack header, then raw float32 arrays. Never sees a socket; no pickle anywhere.

Frames that come in are limited before anything is allocated for them, and one validator turns them into a typed
message.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, get_args

import msgpack
import msgspec
import numpy as np

from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import ProtocolError, RemoteProtocolError
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.messages import Lease, Message, Result, Samples, SumsFrame, Weights
from lockstep.common.protocol.shard_messages import SliceFrame, Squares

#: A frame: anything that gives its bytes without a copy.
Buffer = bytes | bytearray | memoryview

#: Longest header in bytes: a status with some thousand workers fits.
HEADER_LIMIT = 2**20

#: Most elements of one list or map in a header. Each takes at least a byte, so a short header may claim no more than
#: its length. Room is made for what a list claims, and again for each list in it; msgpack sets no limit to the depth.
ITEMS_LIMIT = 2**15

#: Messages that carry an array.
WITH_AN_ARRAY = (SumsFrame, Samples, Weights, SliceFrame, Squares)

#: Messages that carry a frame of a vector if they name its first element.
MAY_CARRY_A_FRAME = (Lease, Result)


def arrays_of(message: Message) -> int:
    """Return the number of arrays that travel with a message: at most one."""
    if isinstance(message, MAY_CARRY_A_FRAME):
        return int(message.start is not None)
    return int(isinstance(message, WITH_AN_ARRAY))


def encode(message: Message, arrays: Sequence[Vector] = ()) -> list[Buffer]:
    """Return the frames of a message; the array frames are views, valid while the arrays do not change."""
    if len(arrays) != arrays_of(message):
        raise ProtocolError(f"a {type(message).__name__} carries {arrays_of(message)} arrays, not {len(arrays)}")
    return [encode_header(message), *(np.ascontiguousarray(array, dtype="<f4").data.cast("B") for array in arrays)]


def encode_header(message: Message) -> bytes:
    """Return the header of a message, whose arrays follow it as frames."""
    header: bytes = msgpack.packb(msgspec.to_builtins(message))
    if len(header) > HEADER_LIMIT:
        raise ProtocolError(f"the header of a {type(message).__name__} has {len(header)} bytes, over {HEADER_LIMIT}")
    return header


def decode(frames: Sequence[Buffer], expected: Any) -> tuple[Message, list[Vector]]:
    """Return the message and its arrays, read-only views into the frames.

    `expected` is the union of message classes that may come this way. `RemoteProtocolError` for anything else.
    """
    if not 1 <= len(frames) <= 2:
        raise RemoteProtocolError(f"a message of {len(frames)} frames: expected 1 or 2")
    message = decode_header(frames[0], expected)
    if len(frames) - 1 != arrays_of(message):
        raise RemoteProtocolError(
            f"a {type(message).__name__} with {len(frames) - 1} arrays: expected {arrays_of(message)}"
        )
    return message, [array_from(frame) for frame in frames[1:]]


def decode_header(frame: Buffer, expected: Any) -> Message:
    """Return the message that a header frame holds."""
    size = memoryview(frame).nbytes
    if size > HEADER_LIMIT:
        raise RemoteProtocolError(f"a header of {size} bytes: expected at most {HEADER_LIMIT}")
    items = min(size, ITEMS_LIMIT)
    try:
        fields = msgpack.unpackb(
            frame,
            raw=False,
            strict_map_key=True,
            max_str_len=HEADER_LIMIT,
            max_bin_len=0,
            max_ext_len=0,
            max_array_len=items,
            max_map_len=items,
        )
        message: Message = msgspec.convert(fields, kind_of(fields, expected))
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException) as error:
        # msgspec's ValidationError and msgpack's format errors are ValueErrors.
        # The error quotes the peer's own words, perhaps a key of the header.
        raise RemoteProtocolError(f"a header that is not a message of this protocol: {one_line(str(error))}") from error
    return message


def kind_of(fields: Any, expected: Any) -> Any:
    """Return the class that a message's tag names; if it names none of the union, that, whose validator says why.

    The validator takes 6 us to find the one and 1 us to check it.
    """
    tag = fields.get("type") if isinstance(fields, dict) else None
    return _kinds(expected).get(tag, expected) if isinstance(tag, str) else expected


@cache
def _kinds(expected: Any) -> dict[str, type[Message]]:
    """Return the classes of a union by their tags."""
    return {kind.__struct_config__.tag: kind for kind in get_args(expected)}


def array_from(frame: Buffer) -> Vector:
    """Return a frame as a read-only float32 vector."""
    view = memoryview(frame)
    if view.nbytes % 4:
        raise RemoteProtocolError(f"an array of {view.nbytes} bytes: expected a multiple of 4")
    vector: Vector = np.frombuffer(view, dtype="<f4")
    vector.flags.writeable = False
    return vector
