"""Decodes JSON from files, which anybody may have changed: with one kind of error, whatever is wrong."""

from functools import cache
from typing import Any, TypeVar, overload

import msgspec

from lockstep.common.files.sanitize import one_line

T = TypeVar("T")


@overload
def decode(data: bytes | memoryview | str, kind: type[T]) -> T: ...
@overload
def decode(data: bytes | memoryview | str, kind: object) -> Any: ...
def decode(data: bytes | memoryview | str, kind: Any) -> Any:
    """Decode JSON as a value of that kind; raises `msgspec.DecodeError`, in one line.

    By itself msgspec raises three more: for bytes that are not UTF-8, for lone surrogates, and for objects nested
    deeper than Python's recursion limit.
    """
    decoder = _decoder(kind)
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError, BufferError) as error:
        raise msgspec.DecodeError(one_line(str(error))) from error


def convert(value: object, kind: type[T]) -> T:
    """Return a value that was decoded as one of that kind; errors as of `decode`."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise msgspec.DecodeError(one_line(str(error))) from error


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    # Created once per kind, since a ledger has many lines.
    return msgspec.json.Decoder(kind)
