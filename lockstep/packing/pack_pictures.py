"""Packs a folder of pictures."""

from pathlib import Path

from lockstep.common.data.folder import Origin
from lockstep.common.data.folder_writer import dataset_folder
from lockstep.common.files.sanitize import one_line
from lockstep.common.runtime.version import VERSION
from lockstep.packing.options import Packed, PackOptions
from lockstep.packing.pictures import PictureReader, find_pictures
from lockstep.packing.result import Watch, as_dtype, division_note, division_of, packed_of, put


def pack_pictures(source: Path, destination: Path, options: PackOptions, watch: Watch) -> Packed:
    """Pack a folder of pictures; as `pack`."""
    found = find_pictures(source, options.test)
    sets = [found.train] if found.test is None else [found.train, found.test]
    whole, done = sum(len(each.paths) for each in sets), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        watch(min(1.0, done / max(1, whole)))

    reader = PictureReader(options, advance)
    with dataset_folder(destination) as writer:
        for name, each in zip(("train", "test"), sets, strict=False):
            marks = None if found.test is not None else division_of(options).marks(len(each.paths))
            for samples, labels in reader.batches(each):
                chosen = None if marks is None else marks[: len(labels)]
                marks = None if marks is None else marks[len(labels) :]
                put(writer, name, as_dtype(samples, options.dtype), labels, chosen)
        manifest = writer.finish(
            kind="pictures",
            classes=len(found.class_names),
            origin=Origin(source=one_line(str(source)), options=options.texts(), version=VERSION),
            class_names=[one_line(name) for name in found.class_names],
        )
    return packed_of(destination, manifest, [] if found.test is not None else [division_note(options)])
