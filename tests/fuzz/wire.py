"""Headers that somebody makes up: a message of ours in which something is not as it should be, or all of it is not."""

import math
import struct
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import msgpack
import msgspec

from lockstep.common.protocol.codec import Buffer, encode
from lockstep.common.protocol.messages import Message
from tests.fuzz.mutation import EDGES, damaged
from tests.fuzz.tape import Tape
from tests.lockstep.common.protocol.test_codec import EXAMPLES, vectors_for

#: What a field may hold instead of what belongs there.
ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    *EDGES[:-1],
    -(2**63),
    0.0,
    -0.0,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "x" * 256,
    "x" * 30_000,
    "\x1b]0;title\x07\x1b[2J",
    "line\nerror: another",
    "\u202etxet",
    "\u2028",
    "\ud800",
    "[bold]x[/]",
    "[/]",
    "$x_{$",
    "../../etc/passwd",
    "/dev/zero:build",
    "f" * 64 + "\n",
    b"",
    b"\xff" * 64,
    [],
    [[]],
    [None] * 5000,
    {},
    {"class": "Linear", "args": [2**40, 2**40]},
    {"a": {"a": {"a": {}}}},
)

#: Extension types and a timestamp, which are not to be decoded.
FOREIGN = (msgpack.ExtType(1, b"x" * 16), msgpack.Timestamp(2**33))


def packed(fields: Any) -> bytes:
    """Return a header with these fields, which may hold what no header should."""
    header = msgpack.packb(fields, use_bin_type=True, unicode_errors="surrogatepass")
    assert isinstance(header, bytes)
    return header


def made_up(tape: Tape, messages: Sequence[Message] = EXAMPLES) -> bytes:
    """Return a header that differs from one of some messages in one to three fields."""
    fields = deepcopy(msgspec.to_builtins(tape.choose(messages)))
    for _ in range(1 + tape.below(3)):
        _spoil(tape, fields)
    return packed(fields)


def almost(tape: Tape, message: Message) -> bytes:
    """Return a header that differs from a message in its fields, or in its bytes."""
    return made_up(tape, [message]) if tape.happens() else damaged(tape, packed(msgspec.to_builtins(message)))


def odd(tape: Tape) -> Any:
    """Return what belongs nowhere: a copy, since it may be spoilt in its turn."""
    return deepcopy(tape.choose(ODD))


def _spoil(tape: Tape, fields: dict[Any, Any]) -> None:
    name: Any = tape.choose(list(fields))
    inner = fields[name]
    if isinstance(inner, dict) and inner and tape.happens():
        _spoil(tape, inner)
        return
    if isinstance(inner, list) and inner and isinstance(inner[0], dict) and tape.happens():
        _spoil(tape, inner[0])
        return
    match tape.below(8):
        case 0:
            del fields[name]
            fields.setdefault("type", "")
        case 1:
            fields[tape.choose(("more", "", "type", b"bytes", 3, "\x00"))] = odd(tape)
        case 2:
            fields[name] = tape.choose(FOREIGN)
        case 3:
            fields["type"] = tape.choose(EXAMPLES).__struct_config__.tag
        case 4 if isinstance(inner, int | float):
            fields[name] = max(-(2**63), min(2**64 - 1, inner + tape.choose((-1, 1, 2**31, 0.5, -(2**62)))))
        case 5 if isinstance(inner, int | float):
            fields[name] = [inner] * tape.choose((1, 2, 70, 5000))
        case _:
            fields[name] = odd(tape)


def frames_of(message: Message) -> list[bytes]:
    """Return the frames of a message as bytes."""
    return [bytes(frame) for frame in encode(message, vectors_for(message))]


def odd_frames(tape: Tape) -> list[Buffer]:
    """Return a message with too many frames, or too few, or of other lengths."""
    frames: list[Buffer] = [*frames_of(tape.choose(EXAMPLES))]
    frames += [tape.raw(tape.choose((0, 1, 3, 4, 8, 20, 400))) for _ in range(tape.below(3))]
    if tape.happens(4):
        del frames[tape.below(len(frames))]
    if frames and tape.happens():
        at = tape.below(len(frames))
        frames[at] = bytes(frames[at])[: tape.below(len(frames[at]) + 1)]
    return frames


def nested(depth: int) -> bytes:
    """Return lists within lists."""
    return b"\x91" * depth + b"\xc0"


#: Headers of at most 16 KiB that claim, or would take, far more than that.
BOMBS = {
    "lists in lists": nested(16_383),
    "maps in maps": b"\x81\xa1a" * 5461,
    "a list that claims 2**32 elements": b"\xdd\xff\xff\xff\xff",
    "a map that claims 2**32 pairs": b"\xdf\xff\xff\xff\xff",
    "a text that claims 2**32 bytes": b"\xdb\xff\xff\xff\xff",
    "bytes that claim 2**32": b"\xc6\xff\xff\xff\xff",
    "an extension that claims 2**32 bytes": b"\xc9\xff\xff\xff\xff\x01",
    "lists of 65,535 within one another": (b"\xdc\xff\xff" * 5461)[:16_384],
    "maps of 65,535 within one another": (b"\xde\xff\xff\xa1a" * 3276)[:16_384],
    "a list of extensions": b"\xdc\x03\xe8" + b"\xd4\x01\x00" * 1000,
    "a list of empty lists": b"\xdc\x3f\xff" + b"\x90" * 16_383,
    "a list of empty maps": b"\xdc\x3f\xff" + b"\x80" * 16_383,
    "one key many times": b"\xde\x0f\xff" + b"\xa1a\xc0" * 4095,
    "a status of empty lists": packed({"type": "status", "workers": [[]] * 16_000}),
    "a model of empty lists": packed({"type": "welcome", "job": {"model": {"args": [[]] * 16_000}}}),
    "an extension within a message": packed({"type": "ping", "more": msgpack.ExtType(5, b"x" * 16_000)}),
    "a timestamp": b"\xc7\x0c\xff" + struct.pack(">Iq", 2**32 - 1, 2**62),
}
