"""Damages bytes: flips, cuts, doubles, inserts, overwrites by numbers at which parsers break, and splices of two."""

from collections.abc import Sequence
from itertools import pairwise

from tests.fuzz.tape import Tape

#: Numbers at which lengths and offsets go wrong.
EDGES = (0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)

#: Texts that mean something to one parser or another.
WORDS = (
    b"\x00",
    b"\xff" * 9,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc9\x7f\xff\xff\xff\x01",
    b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",
    b"\xcf" + b"\xff" * 8,
    b"\x91" * 40,
    b"\xed\xa0\x80",
    b"\x1b[2J",
    b"\r\n",
    b"[" * 40,
    b'{"a":' * 20,
    b"NaN",
    b"-1",
    b"1e999",
    b"9" * 40,
    b"true",
    b"null",
    b'"',
    b"\\ud800",
    b"../",
    b"'|O'",
)


def damaged(tape: Tape, whole: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return bytes that differ from `whole` in one to four places, or in all that follows one."""
    data = bytearray(whole)
    for _ in range(1 + tape.below(4) * tape.below(2)):
        at = tape.below(len(data) + 1)
        match tape.below(10):
            case 0:
                data[at : at + 1] = bytes([data[at] ^ (1 << tape.below(8))]) if at < len(data) else b""
            case 1:
                data[at : at + 1] = tape.raw(1)
            case 2:
                del data[at:]
            case 3:
                del data[at : at + 1 + tape.below(32)]
            case 4:
                data[at:at] = data[max(0, at - 1 - tape.below(32)) : at] * (1 + tape.below(3))
            case 5:
                data[at:at] = tape.choose(WORDS)
            case 6:
                word = tape.choose(WORDS)
                data[at : at + len(word)] = word
            case 7:
                width = tape.choose((1, 2, 4, 8))
                edge = tape.choose(EDGES) % 256**width
                data[at : at + width] = edge.to_bytes(width, tape.choose(("little", "big")))
            case 8:
                data[at:at] = tape.raw(1 + tape.below(6))
            case _:
                other = tape.choose(others or (whole,))
                data[at:] = other[tape.below(len(other) + 1) :]
    return bytes(data)


def tokens_of(text: str) -> list[str]:
    """Return a text cut at the places where its structure changes."""
    cuts = [0, *(i for i in range(1, len(text)) if text[i].isalnum() != text[i - 1].isalnum()), len(text)]
    return [text[low:high] for low, high in pairwise(cuts)]
