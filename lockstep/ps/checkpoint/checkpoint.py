"""A checkpoint: all that a run needs to resume with the same bits, as one safetensors file under a seal; its folder.

The weights are under their own names, so that everybody can read them; each slot of the optimizer is
`optimizer/SLOT/NAME`, and the run's progress, as JSON, is the array `lockstep/past`. The seal is the SHA-256 of
the whole file in which its own 64 digits are zeros: no bit of the file can change without being found.

The folder has the newest few checkpoints and the best one; a damaged one is named, and the one before it is used."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.layout import ParameterLayout
from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import FileFormatError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.files.reading import decode, read_regular
from lockstep.common.files.safetensors import MAX_FILE_BYTES, MAX_HEADER_BYTES, parts_of, read
from lockstep.common.job.job import Job
from lockstep.common.protocol.fingerprint import Fingerprint
from lockstep.common.protocol.messages import EpochRecord
from lockstep.common.runtime.notice import warning
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.progress import Count, RunTotals

PROGRESS_ARRAY = "lockstep/past"

#: The text before the seal in the header, and the text in its place while the digest is taken.
_KEY, _BLANK = b'"sha256":"', b"0" * 64


class CheckpointIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """All that has to be equal for the same bits."""

    #: The job, with all of its values.
    job: Job
    #: The digest of the model's file; empty for a model of the library.
    source: str
    #: The digest of the data.
    dataset: str
    #: The digest of names, shapes and places of all parameters, and of the values of frozen ones.
    layout: str
    #: The versions and the processor that computed it.
    numerics: Fingerprint

    @classmethod
    def of(cls, info: RunInfo) -> "CheckpointIdentity":
        return cls(
            job=info.job, source=info.source, dataset=info.dataset, layout=info.layout, numerics=info.fingerprint
        )


class RunProgress(RunTotals, frozen=True, kw_only=True):  # type: ignore[misc]  # msgspec allows it
    """The progress of a run, next to its weights."""

    #: Whether the evaluation that may follow the last step is done.
    is_evaluated: bool
    #: The sum of losses over the training samples of the epoch so far.
    loss_sum: float
    #: The number of their targets.
    count: Count
    #: How many of these targets are ignored: labels that are `ignore_index`.
    ignored: Count = 0
    #: The sum of the weights of the others, if they have weights.
    weight: float | None = None
    #: The sums of metrics over these samples.
    metrics: tuple[float, ...] = ()
    #: One record per epoch.
    history: list[EpochRecord]
    #: Seconds since the first step.
    elapsed_s: float
    #: Seconds of the whole run.
    wall_s: float
    #: The length of `metrics.jsonl`, in bytes: what comes after it is of later steps.
    metrics_bytes: Count
    #: The length of `ledger.jsonl`, in bytes.
    ledger_bytes: Count


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint that was read."""

    path: Path
    identity: CheckpointIdentity
    progress: RunProgress
    #: All arrays of the file but the progress, by name.
    arrays: dict[str, NDArray[Any]]

    def is_of(self, epoch: EpochRecord) -> bool:
        """Tell whether it was taken at the end of that epoch."""
        history = self.progress.history
        last = history[-1] if history and self.progress.is_evaluated else None
        return last is not None and (last.epoch, last.weights_sha256) == (epoch.epoch, epoch.weights_sha256)

    def held(self, layout: ParameterLayout, slots: Iterable[str]) -> tuple[Vector, dict[str, Vector]]:
        """Return the weights for a layout, and an optimizer's slots; `FileFormatError` if the file has others."""
        weights = layout.new_vector()
        state = {slot: np.zeros(layout.parameter_size, np.float32) for slot in slots}
        places = _places(layout, weights, state)
        # Frozen arrays are the model's already, whose layout has the same digest.
        odd = sorted(places.keys() ^ (self.arrays.keys() - {each.name for each in layout.frozen}))
        if odd:
            raise FileFormatError(f"{self.path}: array {odd[0]!r} is in the file or in the model, but not in both")
        for name, place in places.items():
            if self.arrays[name].shape != place.shape or self.arrays[name].dtype != np.float32:
                raise FileFormatError(f"{self.path}: array {name!r} is not float32 of shape {place.shape}")
            place[...] = self.arrays[name]
        return weights, state


def _places(layout: ParameterLayout, weights: Vector, state: Mapping[str, Vector]) -> dict[str, Vector]:
    """Return what a file has of the vectors by name, as views."""
    slots = {
        f"optimizer/{slot}/{entry.name}": entry.view(values)
        for slot, values in state.items()
        for entry in layout.parameters
    }
    return layout.views(weights) | slots


def sealed_parts(
    identity: CheckpointIdentity,
    progress: RunProgress,
    layout: ParameterLayout,
    weights: Vector,
    state: Mapping[str, Vector],
) -> list[bytes | memoryview]:
    """Return the bytes of a checkpoint, to be written in order; `state` has the optimizer's slots by name."""
    arrays: dict[str, NDArray[Any]] = layout.read(weights) | _places(layout, weights, state)
    arrays[PROGRESS_ARRAY] = np.frombuffer(msgspec.json.encode(progress), np.uint8)
    metadata = {
        "format": "lockstep checkpoint 1",
        "step": str(progress.steps),
        "job": msgspec.json.encode(identity.job).decode(),
        "source": identity.source,
        "dataset": identity.dataset,
        "layout": identity.layout,
        "numerics": msgspec.json.encode(identity.numerics).decode(),
        "sha256": _BLANK.decode(),
    }
    length, header, *rest = parts_of(arrays, metadata)
    digest = hashlib.sha256()
    for part in (length, header, *rest):
        digest.update(part)
    # The only place: within another text of the header, a quotation mark has a backslash before it.
    before, key, after = bytes(header).partition(_KEY + _BLANK)
    assert key
    return [length, before + _KEY + digest.hexdigest().encode() + after, *rest]


def read_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint; `FileFormatError` if it cannot be read, or differs from its seal in any bit."""
    check_seal(path)
    arrays, metadata = read(path)
    try:
        progress = decode(arrays.pop(PROGRESS_ARRAY).data, RunProgress)
        identity = CheckpointIdentity(
            job=decode(metadata["job"], Job),
            source=metadata["source"],
            dataset=metadata["dataset"],
            layout=metadata["layout"],
            numerics=decode(metadata["numerics"], Fingerprint),
        )
    except (KeyError, msgspec.MsgspecError) as error:
        raise FileFormatError(
            f"{path}: is not a checkpoint of this version of lockstep ({error}): expected one; resume with the version "
            "that wrote it"
        ) from error
    return Checkpoint(path=path, identity=identity, progress=progress, arrays=arrays)


def _unreadable(path: Path, error: OSError) -> FileFormatError:
    return FileFormatError(f"{path}: cannot be read ({error.strerror}): expected a checkpoint")


def check_seal(path: Path) -> str:
    """Return the seal of a checkpoint; `FileFormatError` if it cannot be read, or differs from its seal in any bit."""
    try:
        data = memoryview(read_regular(path, MAX_FILE_BYTES))
    except OSError as error:
        raise _unreadable(path, error) from error
    # No more than a header may have, whatever it claims.
    header = bytes(data[: 8 + min(int.from_bytes(data[:8], "little"), MAX_HEADER_BYTES)])
    start = header.find(_KEY) + len(_KEY)
    seal = header[start : start + len(_BLANK)]
    if start < len(_KEY) or len(seal) < len(_BLANK):
        raise FileFormatError(f"{path}: has no seal: it is damaged, cut off, or not a checkpoint")
    digest = hashlib.sha256(data[:start])
    digest.update(_BLANK)
    digest.update(data[start + len(_BLANK) :])
    if digest.hexdigest().encode() != seal:
        raise FileFormatError(
            f"{path}: is damaged: its SHA-256 is {digest.hexdigest()[:12]}…, and its seal records "
            f"{seal.decode('ascii', 'replace')[:12]}…"
        )
    return digest.hexdigest()


#: Writes a file whole or not at all, as `write_atomically`: an argument so that a full disk can be tried.
Writer = Callable[[Path, Iterable[bytes | memoryview]], None]

#: How the names of checkpoints end that are set aside since their weights depend on results in doubt.
DOUBTFUL = "doubtful"

_NAME = re.compile(r"step-(\d{8,})\.safetensors")


def step_of(name: str) -> int | None:
    """Return the step of a checkpoint by the name of its file, None if that is not one."""
    match = _NAME.fullmatch(name)
    return None if match is None else int(match[1])


@dataclass
class CheckpointFolder:
    """The folder of one run's checkpoints; `say` reports what cannot be read or removed."""

    path: Path
    say: Callable[[str], None] = lambda text: None
    #: How many are kept next to the best one.
    keep: int = 2
    write: Writer = write_atomically

    def save(self, step: int, parts: Iterable[bytes | memoryview], best: int | None) -> None:
        """Write the checkpoint of a step and remove those that are not kept; those before stay if OSError is raised.

        `best` is the step whose checkpoint, if there is one, stays.
        """
        self.path.mkdir(exist_ok=True)
        self.write(self.file_of(step), parts)
        for old in self.steps()[: -self.keep]:
            if old != best:
                try:
                    self.file_of(old).unlink(missing_ok=True)
                except OSError as error:
                    self.say(warning(f"cannot remove old checkpoint {str(self.file_of(old))!r}: {error.strerror}"))

    def steps(self) -> list[int]:
        """Return the steps of which there is a file, in order."""
        if not self.path.is_dir():
            return []
        found = (step_of(path.name) for path in self.path.iterdir())
        return sorted(step for step in found if step is not None)

    def file_of(self, step: int) -> Path:
        return self.path / f"step-{step:08d}.safetensors"

    def sweep(self) -> None:
        """Remove what a process that was killed has left half written; no other may be writing."""
        for path in self.path.glob(".*.partial"):
            path.unlink()

    def set_aside(self, behind: int, mark: str = "damaged") -> None:
        """Rename the files of later steps than `behind`, so that they neither count nor are lost; `mark` says why."""
        for step in self.steps():
            if step > behind:
                path = self.file_of(step)
                path.replace(path.with_name(f"{path.name}.{mark}"))

    def back_from(self, step: int) -> Iterator[Checkpoint]:
        """Yield the whole checkpoints up to a step, the last one first; damaged ones are reported."""
        for at in reversed([at for at in self.steps() if at <= step]):
            try:
                yield read_checkpoint(self.file_of(at))
            except FileFormatError as error:
                self.say(warning(f"{error}: using the one before it"))
