"""What became of a source: its folder, and what a person is told of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lockstep.common.data.folder import FolderManifest
from lockstep.packing.options import PackOptions

#: Called with the share of a source that has been read, from 0 to 1.
Watch = Callable[[float], None]


@dataclass(frozen=True)
class Packed:
    """A source that was packed."""

    folder: Path
    manifest: FolderManifest
    #: What was decided and a person should know, a line each.
    notes: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """Return what a person is to read of it."""
        train, test, names = self.manifest.train.info, self.manifest.test.info, self.manifest.class_names
        yield f"packed {train.samples:,} samples to train on and {test.samples:,} to test with into {self.folder}"
        shape, dtype = " x ".join(map(str, train.sample_shape)), np.dtype(train.images_dtype)
        kinds = f"{self.manifest.classes} classes" if self.manifest.classes else "real numbers to predict"
        listed = f": {', '.join(names[:10])}{', …' if len(names) > 10 else ''}"
        yield f"each is {shape} of {dtype}; {kinds}{listed if names else ''}"
        yield from self.notes


def division_note(options: PackOptions) -> str:
    """Return what a person should know of a test set that was taken out of the samples."""
    return f"the test set is {options.test_split:.0%} of it, drawn by seed {options.seed} (--test-split, --seed)"
