"""The training data of a run where it is now: it can be loaded, or it is the source, and is packed as it was then."""

from collections.abc import Callable
from pathlib import Path

from lockstep.packing.cache import Progress, is_to_be_packed, packed_source
from lockstep.packing.options import PackOptions
from lockstep.ps.records.run_folder import read_receipt


def training_data_at(
    run: Path, place: str | None, cache: Path, progress: Progress, say: Callable[[str], None]
) -> str | None:
    """Return where the training data of a run can be loaded from, None if no place was given.

    A table, pictures or arrays without a test set are packed into the cache, with the options that the run's receipt
    has. DataError if it has none, or as of `packed_source`.
    """
    if place is None or not is_to_be_packed(place):
        return place
    kept = read_receipt(run).data
    options = PackOptions() if kept is None else PackOptions.recorded(kept.origin)
    return packed_source(place, options, None, cache, progress, say)
