"""Samples in a file that are read when they are needed: a mapping, from which rows are gathered as from an array.

The system keeps the read pages for as long as there is memory, and releases them when there is not. While rows have to
be waited for, those of the next lease are requested ahead, in the order in which they lie in the file.
"""

import hashlib
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.common.data.npy import DATA_OFFSET, NpyHeader, read_header
from lockstep.common.errors import DataError
from lockstep.common.files.reading import open_regular
from lockstep.common.runtime.environment import major_faults

#: Most bytes of an array's file: 256 TiB.
MAX_FILE_BYTES = 2**48
#: Gathers without waiting for the disk after which nothing is requested ahead any more: a request costs a microsecond.
CALM_GATHERS = 64

#: Which rows: of a set, or of its file.
Indices = NDArray[np.int64]


@dataclass
class MappedFile:
    """One array's file, mapped for reading, with its rows as an array."""

    path: Path
    rows: NDArray[Any]
    _mapping: mmap.mmap
    #: Bytes of a block, and the SHA-256 of each in hex.
    block_bytes: int
    digests: Sequence[str]
    #: Whether each block is compared with its digest when something of it is first gathered.
    is_checked: bool = False
    _checked: NDArray[np.bool_] = field(init=False)
    #: So many gathers may still have to wait for the disk, if none of them does.
    wary: int = CALM_GATHERS

    def __post_init__(self) -> None:
        self._checked = np.zeros(len(self.digests), np.bool_)

    @classmethod
    def open(
        cls, path: Path, header: NpyHeader, block_bytes: int, digests: Sequence[str], *, is_checked: bool = False
    ) -> "MappedFile":
        """Map a file; DataError if it cannot be read or is not the array that `header` describes."""
        try:
            with open_regular(path, MAX_FILE_BYTES) as file:
                found = read_header(file, str(path), MAX_FILE_BYTES)
                size = os.fstat(file.fileno()).st_size - DATA_OFFSET
                if found != header or file.tell() != DATA_OFFSET:
                    raise DataError(
                        f"{path}: holds {found.dtype.str} {found.shape}: expected {header.dtype.str} {header.shape}, "
                        "as in dataset.json; pack it again"
                    )
                if size != header.data_bytes:
                    raise DataError(
                        f"{path}: its header claims {header.data_bytes} bytes of data: expected as many, and it has "
                        f"{size}; pack it again"
                    )
                mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}): expected an .npy file") from None
        except (ValueError, OverflowError) as error:
            raise DataError(f"{path}: damaged ({error}): expected an .npy file; pack it again") from None
        # Rows are gathered from all over the file: what follows one is not read along with it.
        mapping.madvise(mmap.MADV_RANDOM)
        values = np.frombuffer(mapping, header.dtype, offset=DATA_OFFSET)
        return cls(path, values.reshape(header.shape), mapping, block_bytes, digests, is_checked)

    def take(self, indices: Indices) -> NDArray[Any]:
        """Return copies of rows, in the order given."""
        if self.is_checked:
            self._check(indices)
        if not self.wary:
            return self.rows.take(indices, axis=0)
        self.request(indices)
        before = major_faults()
        gathered: NDArray[Any] = self.rows.take(indices, axis=0)
        self.wary = CALM_GATHERS if major_faults() > before else self.wary - 1
        return gathered

    def request(self, indices: Indices) -> None:
        """Let the system begin to read rows, unless all that was gathered of late was in memory."""
        if not self.wary or not len(indices):
            return
        each = self.rows.itemsize * self.rows[0].size
        begins = np.sort(indices) * each + DATA_OFFSET
        first, last = begins // mmap.PAGESIZE, (begins + each - 1) // mmap.PAGESIZE
        # Rows on the same pages, or on pages next to each other, are one request.
        cuts = np.flatnonzero(first[1:] > last[:-1] + 1) + 1
        ends = np.append(cuts, len(first)) - 1
        for page, end in zip(first[np.insert(cuts, 0, 0)].tolist(), last[ends].tolist(), strict=True):
            self._mapping.madvise(mmap.MADV_WILLNEED, page * mmap.PAGESIZE, (end - page + 1) * mmap.PAGESIZE)

    def _check(self, indices: Indices) -> None:
        if not len(indices):
            return
        each = self.rows.itemsize * self.rows[0].size
        first, last = indices * each // self.block_bytes, ((indices + 1) * each - 1) // self.block_bytes
        touched = np.unique(np.concatenate([np.arange(low, high + 1) for low, high in zip(first, last, strict=True)]))
        for number in touched[~self._checked[touched]].tolist():
            self._check_mapped(number)

    def _check_mapped(self, number: int) -> None:
        begin = number * self.block_bytes
        end = min(begin + self.block_bytes, self.rows.nbytes)
        with memoryview(self._mapping) as whole, whole[DATA_OFFSET + begin : DATA_OFFSET + end] as block:
            self.check_block(number, block)
        self._checked[number] = True

    def check_block(self, number: int, data: bytes | memoryview) -> None:
        """Raise DataError if `data` is not the packed block."""
        found = hashlib.sha256(data).hexdigest()
        if found != self.digests[number]:
            begin = number * self.block_bytes
            raise DataError(
                f"{self.path}: block {number} (bytes {begin:,} to {begin + len(data) - 1:,} of the data) has changed "
                f"since it was packed: SHA-256 {found[:12]}…, expected {self.digests[number][:12]}…; pack it again"
            )

    def check_ends(self) -> None:
        """Raise DataError if the first or the last block is not as it was packed: a cheap look, not a whole one."""
        for number in sorted({0, len(self.digests) - 1} if self.digests else ()):
            self._check_mapped(number)


class MappedSamples:
    """The samples of a set in a mapped file: all of them, or some; read as an array is, by rows."""

    def __init__(self, file: MappedFile, indices: Indices | None = None) -> None:
        self.file = file
        #: The places of the samples in the file, ascending; None for all of it.
        self._indices = indices
        count = len(file.rows) if indices is None else len(indices)
        self.shape: tuple[int, ...] = (count, *file.rows.shape[1:])
        self.dtype: np.dtype[Any] = file.rows.dtype
        self.ndim, self.size = len(self.shape), count * file.rows[0].size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Return copies of what an array would return for a key whose first part is rows."""
        rows, *rest = key if isinstance(key, tuple) else (key,)
        indices = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.arange(len(self))[rows]
        if np.ndim(indices) == 0:
            return np.asarray(self.take(np.array([indices]))[(0, *rest)])
        return np.asarray(self.take(indices)[(slice(None), *rest)])

    def take(self, indices: Indices, axis: int = 0) -> NDArray[Any]:
        """Return copies of samples, in the order given."""
        assert axis == 0
        return self.file.take(self._in_file(indices))

    def request(self, indices: Indices) -> None:
        """Let the system begin to read samples that will be taken soon."""
        self.file.request(self._in_file(indices))

    def may_wait(self) -> bool:
        """Return whether samples that are taken may have to be waited for, as far as the last ones show."""
        return self.file.wary > 0

    def subset(self, indices: Indices) -> "MappedSamples":
        """Return some of the samples, by ascending indices."""
        return MappedSamples(self.file, self._in_file(indices))

    def _in_file(self, indices: Indices) -> Indices:
        return indices if self._indices is None else self._indices[indices]


#: Samples in memory, or in a file.
Samples = NDArray[Any] | MappedSamples
