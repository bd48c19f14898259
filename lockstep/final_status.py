"""From the result in a run's folder to the last thing that is shown of it."""

from common.messages import EpochStatus, Status
from ps.phases import Phase
from ps.run_folder import RunResult


def final_status(result: RunResult) -> Status:
    """Return how a finished run stands: the last look at it came before its end."""
    history = [
        EpochStatus(
            epoch=epoch.epoch,
            loss=epoch.loss,
            accuracy=epoch.accuracy,
            r2=epoch.r2,
            test_loss=epoch.test_loss,
            test_accuracy=epoch.test_accuracy,
            test_r2=epoch.test_r2,
            wall_s=epoch.wall_s,
            val_loss=epoch.val_loss,
            val_accuracy=epoch.val_accuracy,
        )
        for epoch in result.history
    ]
    return Status(
        run=result.run,
        model=result.model,
        phase=Phase.FINISHED.value,
        epoch=result.epochs,
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
