"""From the result in a run's folder to the last thing that is shown of it."""

from common.protocol.messages import EpochStatus, Status
from ps.coordinator.transitions import RunPhase
from ps.records.run_folder import RunResult


def final_status(result: RunResult) -> Status:
    """Return how a finished run stands: the last look at it came before its end."""
    history = epoch_statuses(result)
    return Status(
        run=result.run,
        model=result.model,
        phase=RunPhase.FINISHED.value,
        epoch=history[-1].epoch,
        epochs=result.epochs,
        step=result.steps,
        steps=result.steps,
        loss=result.train_loss,
        accuracy=history[-1].accuracy,
        r2=history[-1].r2,
        images_per_s=result.images_per_s,
        elapsed_s=history[-1].wall_s,
        eta_s=0.0,
        min_workers=result.workers,
        workers=[],
        history=history,
        failure="",
    )


def epoch_statuses(result: RunResult) -> list[EpochStatus]:
    """Return the epochs of a finished run as they were told of while it went on."""
    names = EpochStatus.__struct_fields__
    return [EpochStatus(**{name: getattr(epoch, name) for name in names}) for epoch in result.history]
