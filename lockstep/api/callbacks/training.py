"""A run under way, as callbacks see it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from common.errors import RunError
from common.files.safetensors import read
from common.job.job import Job
from common.nn.model_source import build_model
from common.nn.module import Module
from common.protocol.messages import EpochStatus
from ps.records.run_folder import EPOCH_WEIGHTS


@dataclass
class Training:
    """What a callback is told of, and the one thing that it can do: `stop`."""

    #: The run's folder.
    folder: Path
    job: Job
    #: One record an epoch so far: loss, accuracy, test_loss, test_accuracy, and with a validation set val_loss and
    #: val_accuracy.
    history: list[EpochStatus] = field(default_factory=list)
    is_stopped: bool = False

    def stop(self) -> None:
        """End the run after the epoch that has just ended, instead of beginning another one."""
        self.is_stopped = True

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return the weights after the last epoch, by name; `RunError` where they could not be written."""
        arrays, metadata = read(self.folder / EPOCH_WEIGHTS)
        epoch = self.history[-1].epoch
        if metadata.get("epoch") != str(epoch):
            raise RunError(
                f"{self.folder / EPOCH_WEIGHTS}: is of epoch {metadata.get('epoch')}: expected that of epoch {epoch}; "
                "the server's log tells why it could not be written"
            )
        return arrays

    def model(self) -> Module:
        """Return a new model with the weights after the last epoch, in evaluation mode."""
        model = build_model(self.job.model)
        model.load_state_dict(self.state_dict())
        return model.eval()
